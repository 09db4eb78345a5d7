"""What all groups of settings have in common: they are frozen, strict, and refuse unknown keys."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1, le=10**9)]
NonNegative = Annotated[int, Field(ge=0, le=10**9)]
Rate = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]


class Settings(BaseModel):
    """A frozen, strict group of settings. A message about several of them begins with the name of one."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
