import torch

from tests.tiny_onn.helpers import VOCABULARY, small_model
from tiny_onn.generate import generate


def advance(token, place, following):
    """The rule that the small model's tests use: coordinates are the token, modulo 5."""
    return following % 5, following % 5


def without_cache(model, prompt: list[int], limit: int, stop: int) -> list[int]:
    said = list(prompt)
    while len(said) < limit:
        tokens = torch.tensor([said])
        token = int(model(tokens, tokens % 5, tokens % 5)[0, -1].argmax())
        if token == stop:
            break
        said.append(token)
    return said[len(prompt) :]


def test_a_cached_batch_says_what_each_prompt_says_alone_without_a_cache() -> None:
    seen_stop = False
    for seed in range(6):
        model = small_model(seed=seed)
        generator = torch.Generator().manual_seed(seed)
        prompts = [torch.randint(1, VOCABULARY, (n,), generator=generator).tolist() for n in (5, 2, 8)]
        tokens = torch.zeros(3, 8, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = torch.tensor(prompt)
        lengths = torch.tensor([len(p) for p in prompts])
        first = int(model(tokens, tokens % 5, tokens % 5)[0, 4].argmax())
        for stop in (first, 99):
            generated = generate(model, tokens, (tokens % 5, tokens % 5), lengths, limit=14, stop=stop, advance=advance)
            assert generated == [without_cache(model, prompt, 14, stop) for prompt in prompts]
            seen_stop |= generated[0] == []
    assert seen_stop


def test_rows_that_leave_a_batch_and_a_cache_that_has_to_grow_change_nothing(monkeypatch) -> None:
    monkeypatch.setattr("tiny_onn.generate._ROOM", 3)
    monkeypatch.setattr("tiny_onn.generate._PROMPT_TOKENS", 12)  # two or three groups
    lengths = (3, 4, 6, 6, 7, 8)
    early = 0
    for seed in range(4):
        model = small_model(seed=seed)
        generator = torch.Generator().manual_seed(seed)
        prompts = [torch.randint(1, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]
        tokens = torch.zeros(len(prompts), max(lengths), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = torch.tensor(prompt)
        whole = [without_cache(model, prompt, 24, 99) for prompt in prompts]
        ends = [whole[0][1], whole[3][4]]  # these words end a row
        counted = [next((n for n, word in enumerate(said, 1) if word in ends), len(said)) for said in whole]
        generated = generate(
            model,
            tokens,
            (tokens % 5, tokens % 5),
            torch.tensor(lengths),
            limit=24,
            stop=99,
            advance=advance,
            goes_on=lambda token, row, column, ends=ends: (token != ends[0]) & (token != ends[1]),
        )
        assert generated == [said[:n] for said, n in zip(whole, counted, strict=True)]
        early += len(set(counted)) > 2 and max(counted) > 2 * min(counted)
    assert early


def test_a_row_ends_with_the_token_that_nothing_good_can_follow_and_leaves_the_others_as_they_are() -> None:
    ended = 0
    for seed in range(6):
        model = small_model(seed=seed)
        tokens = torch.randint(1, VOCABULARY, (3, 6), generator=torch.Generator().manual_seed(seed))
        whole = [without_cache(model, prompt, 14, 99) for prompt in tokens.tolist()]
        last = whole[0][2]  # of the first row, its third token or the same before
        generated = generate(
            model,
            tokens,
            (tokens % 5, tokens % 5),
            torch.tensor([6, 6, 6]),
            limit=14,
            stop=99,
            advance=advance,
            goes_on=lambda token, row, column, last=last: (token != last) & (row == token % 5) & (column == token % 5),
        )
        expected = [said[: said.index(last) + 1] if last in said else said for said in whole]
        assert generated == expected
        ended += generated != whole
    assert ended
