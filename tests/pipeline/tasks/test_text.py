"""Text: passages without leaks, bits per byte by hand, and what a model says."""

import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline import api
from pipeline.cli import main
from pipeline.data.batch import IGNORED
from pipeline.data.sequential import SequentialLoader, open_loader
from pipeline.data.shards import prepare, read_rows
from pipeline.data.split import hold_out_groups
from pipeline.data.text import SHARED_WORDS, Documents, passages, python_topics, read_texts, related_passages
from pipeline.errors import UserError
from pipeline.layout import TrialFolder
from pipeline.records.spool import read_spool
from pipeline.settings.config import DataConfig, Experiment, replace
from pipeline.settings.experiment_file import validate_experiment
from pipeline.tasks import Sequence
from pipeline.tasks.text import BEGIN, TEXT, as_text, as_tokens, bits_per_byte, continue_text, generate_texts
from pipeline.training.build import build_model
from pipeline.training.model_file import open_model
from pipeline.training.routing_map import read_map
from pipeline.training.worker import run_training
from tests.pipeline.samples import SMALL
from tiny_onn.generate import generate

CPU = torch.device("cpu")
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "mat",
    "and",
    "dog",
    "ran",
    "to",
    "one",
    "big",
    "red",
    "house",
    "wood",
    "sea",
    "fish",
]


def prose(seed: int, words: int) -> str:
    draw = np.random.default_rng(seed)
    return " ".join(draw.choice(WORDS, words).tolist())


def runs(text: str) -> set[str]:
    """Every run of SHARED_WORDS words, by the definition."""
    words = re.findall(r"\w{1,12}", text.lower())
    return {" ".join(words[n : n + SHARED_WORDS]) for n in range(len(words) - SHARED_WORDS + 1)}


def experiment(folder: Path | None = None, **training: object) -> Experiment:
    data = {"task": "text", "max_tokens": 48, "rows_per_group": 4, **({"folder": str(folder)} if folder else {})}
    values = {"name": "text", "data": data, "model": SMALL["model"]}
    return validate_experiment({**values, "training": {**SMALL["training"], **training}}, "test")  # type: ignore[dict-item]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents, of which some repeat parts of others."""
    folder = tmp_path_factory.mktemp("texts")
    said = [prose(seed, 60) for seed in range(6)]
    for number, text in enumerate(said):
        shared = said[(number + 1) % 6].split()[10:40]  # in other paragraphs, and so in no equal ones
        last = f"{prose(100 + number, 12)} {' '.join(shared)}\n\nThe end of it, my dear friends."
        (folder / f"d{number}.txt").write_text(f"{text}\n\n{last}\n")
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TrialFolder:
    root = tmp_path_factory.mktemp("trained")
    made = experiment(folder)
    trial = TrialFolder(root / "trial")
    data = prepare(made.data, root / "data").folder
    assert isinstance(data, Path)
    run_training(made, trial, data, CPU)
    return trial


@pytest.mark.parametrize("most", [63, 255])
def test_held_out_text_shares_no_thirteen_words_with_what_is_trained_on(folder: Path, most: int) -> None:
    for documents in (read_texts(str(folder)), python_topics() if most == 255 else read_texts(str(folder))):
        kept, _ = passages(documents, most)
        groups = related_passages(kept)
        train, held_out = hold_out_groups(groups, 0.2, 0)
        assert train
        assert held_out
        assert not train & held_out
        texts = {passage.name: passage.data.decode() for passage in kept}
        assert train | held_out == texts.keys()
        sides: list[set[str]] = [set().union(*(runs(texts[name]) for name in side)) for side in (train, held_out)]
        assert not sides[0] & sides[1]
        assert most < 255 or any(len(group) > 1 for group in groups)  # there was something to keep together


def test_what_python_repeats_is_left_out_and_nothing_else() -> None:
    documents = python_topics()
    pieces, note = passages(documents, 255)
    kept = sum(len(passage.data) for passage in pieces)
    dropped = int(note.split("(")[1].split()[0].replace(",", ""))
    assert kept + dropped == sum(len(text.encode()) for text in documents.texts.values())
    assert dropped > 0.1 * kept
    assert max(len(passage.data) for passage in pieces) <= 255


def test_repeated_paragraphs_by_hand() -> None:
    texts = {"a": "One two three four five.\n\nSo.\n\nMore.", "b": "one  two three\nfour five!\n\nSo.\n\nLast."}
    pieces, note = passages(Documents(texts), 1000)
    assert [(each.document, each.number, each.data) for each in pieces] == [
        ("a", 0, b"One two three four five.\n\nSo.\n\nMore."),
        ("b", 0, b"So.\n\nLast."),  # what is short may be said again
    ]
    assert note.startswith("1 paragraphs (27 bytes)")


@given(text=st.text(st.sampled_from("ab \n\t.ü世\x00"), max_size=200) | st.text(max_size=300), most=st.integers(4, 40))
@example(text="\n\n\x00", most=4)  # found by the fuzzer
def test_passages_are_the_text_cut_within_no_letter(text: str, most: int) -> None:
    text = text.encode("utf-8", "ignore").decode()
    pieces, note = passages(Documents({"a": text}), most)
    if not note:
        assert b"".join(each.data for each in pieces) == text.encode()
    for number, each in enumerate(pieces):
        assert 0 < len(each.data) <= most
        assert each.number == number
        assert each.data.decode()


def test_files_that_are_no_text_are_refused_by_name_and_the_rest_is_read(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "good.md").write_bytes("\ufeffGrüße".encode())
    (tmp_path / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / ".hidden").write_text("no")
    os.mkfifo(tmp_path / "pipe")
    documents = read_texts(str(tmp_path))
    assert documents.texts == {"sub/good.md": "Grüße"}
    assert [line.split("/")[-1] for line in documents.refused] == [
        "latin.txt: is no UTF-8 text (byte 2: invalid start byte)",
        "pipe: is no file; expected UTF-8 text",
    ]
    assert read_texts(str(tmp_path / "sub" / "good.md")).texts == {"good.md": "Grüße"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, r"x cannot be read \(No such file"),
        (lambda path: path.mkdir(), "x holds no text; expected a file of UTF-8 text"),
        (lambda path: path.write_bytes(b"\xff"), r"holds no text.*\n.*x: is no UTF-8 text \(byte 0"),
        (lambda path: path.write_text("Only this."), "none of the 1 passages of at most 47 bytes can be held out"),
    ],
)
def test_a_folder_without_enough_text_is_refused(tmp_path: Path, make: object, message: str) -> None:
    path = tmp_path / "x"
    make(path)  # type: ignore[operator]
    with pytest.raises(UserError, match=rf"(?s)data.*{message}"):
        prepare(DataConfig(task="text", folder=str(path), max_tokens=48), tmp_path / "data")


def test_rows_are_the_passages_and_every_byte_is_predicted(folder: Path, tmp_path: Path) -> None:
    config = experiment(folder).data
    prepared = prepare(config, tmp_path)
    rows = read_rows(prepared, "train") + read_rows(prepared, "held_out")
    originals = {(each.document, each.number): each.data for each in passages(read_texts(str(folder)), 47)[0]}
    assert {(row.task_id, row.pair) for row in rows} == originals.keys()
    for row in rows:
        assert row.tokens[0] == BEGIN
        assert bytes(row.tokens[1:].tolist()) == originals[row.task_id, row.pair]
        assert row.labelled.tolist() == [False] + [True] * (len(row) - 1)
    counts = prepared.manifest.counts["held_out"]
    assert counts.labelled_tokens == counts.tokens - counts.rows
    text = (folder / "d0.txt").read_text()
    (folder / "d0.txt").write_text(text + "And one word more.\n")
    try:
        assert prepare(config, tmp_path).folder != prepared.folder
    finally:
        (folder / "d0.txt").write_text(text)


def test_text_is_read_folder_by_folder_or_document_by_document(tmp_path: Path) -> None:
    for number, name in enumerate(["a/x/1.txt", "a/2.txt", "b/3.txt", "c.txt"]):
        place = tmp_path / "texts" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(prose(number, 150))
    made = replace(experiment(tmp_path / "texts", steps=9), {"data.order": "sequential"}, "test")
    prepared = prepare(made.data, tmp_path / "data")
    loader = open_loader(made, prepared)
    assert isinstance(loader, SequentialLoader)
    assert sorted(loader.tasks) == ["a", "b", "c.txt"]
    documents = [{name.partition("/")[0] for name in batch.task_ids} for _, batch in loader.stream()]
    assert documents == [{name} for name in loader.tasks for _ in range(3)]
    trial = TrialFolder(tmp_path / "trial")
    run_training(made, trial, Path(str(prepared.folder)), CPU)
    assert read_spool(trial.spool)[0][-1].metrics["forgetting/loss"] > 0


def test_bits_per_byte_by_hand() -> None:
    batch = TEXT.batch([Sequence(as_tokens(b"hi"), (), np.array([False, True, True]), "a", 0)])
    assert batch.labels.tolist() == [[104, 105, IGNORED]]
    even = torch.zeros(1, 3, 257)
    total, count = bits_per_byte(even, batch)
    assert (float(total / count), int(count)) == (pytest.approx(math.log2(257)), 2)
    sure = even.clone()
    sure[0, 0, 104] = math.log(256)  # one half, and the second byte one of 257
    total, count = bits_per_byte(sure, batch)
    assert float(total / count) == pytest.approx((1 + math.log2(257)) / 2)


def test_what_is_measured_is_the_loss_in_bits_and_examples_go_on_from_their_rows(
    trained: TrialFolder, folder: Path
) -> None:
    last = read_spool(trained.spool)[0][-1].metrics
    assert last["held_out/bits_per_byte"] == pytest.approx(last["held_out/loss"] / math.log(2), rel=1e-12)
    examples = json.loads(trained.predictions.read_text())
    assert len(examples) == 2
    texts = read_texts(str(folder)).texts
    for each in examples:
        assert each["given"] + each["target"] in texts[each["task_id"]]
        assert each["predicted"]
    drawn = read_map(trained.routing_maps / "1" / "step-000008.safetensors")
    assert drawn.layout.letters is not None
    assert "".join(drawn.layout.letters).replace("↵", "\n") in texts[drawn.task_id]
    assert drawn.experts.shape == (2, 1 + len("".join(drawn.layout.letters)))


def test_each_line_of_a_file_is_a_prompt_that_the_model_continues(trained: TrialFolder, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out" / "said.json"
    prompts.write_text("the cat\n\n  \none big red\n")
    ran = CliRunner().invoke(main, ["predict", str(trained.model), str(prompts)])
    assert ran.exit_code == 0, ran.output
    model = open_model(trained.model)
    expected = [{"prompt": line, "continuation": model.predict(line)} for line in ("the cat", "one big red")]
    assert json.loads(ran.stdout) == expected
    assert ran.stderr == "2 prompts continued\n"
    out.parent.mkdir()
    written = CliRunner().invoke(main, ["predict", str(trained.model), str(prompts), "--submission", str(out)])
    assert written.stderr == f"2 prompts continued. Written: {out}\n"
    assert json.loads(out.read_text()) == expected
    for text, message in (
        (b"\n \n", "holds no prompt"),
        (b"\xff", "cannot be read"),
        (b"a\n" + b"x" * 47, "line 2: the prompt has 47 bytes; the model takes at most 46"),
    ):
        prompts.write_bytes(text)
        refused = CliRunner().invoke(main, ["predict", str(trained.model), str(prompts)])
        assert refused.exit_code == 2
        assert message in " ".join(refused.stderr.split())
    assert len(api.routing_map(model, "the cat").axes[0].images) == 3


def test_text_stands_in_lines_of_64_with_a_sign_for_what_is_no_letter() -> None:
    row = Sequence(as_tokens("é\n".encode() + b"x" * 70), (), np.ones(74, dtype=np.bool_), "d", 0)
    assert TEXT.maps is not None
    layout = TEXT.maps.lay_out(row)
    assert layout.problem(74) is None
    assert layout.panels.tolist() == [-1] + [0] * 73
    assert layout.letters == ("", "·", "·", "↵", *"x" * 70)
    assert [(int(layout.rows[n]), int(layout.columns[n])) for n in (1, 64, 65, 73)] == [(0, 0), (0, 63), (1, 0), (1, 8)]


def test_generated_text_depends_only_on_the_prompt_and_the_random_numbers(trained: TrialFolder) -> None:
    model = open_model(trained.model)
    prompts = [as_tokens(text.encode()) for text in ("the cat", "a", "one big red")]
    draws = np.random.default_rng(0).random((3, 9))
    together = generate_texts(model.model, prompts, 9, draws)
    assert together == [generate_texts(model.model, [one], 9, draws[n : n + 1])[0] for n, one in enumerate(prompts)]
    greedy = generate_texts(model.model, prompts[:1], 9, draws[:1], temperature=0)[0]
    tokens = torch.from_numpy(prompts[0].astype(np.int64))[None]
    for token in greedy:  # the slow way
        assert token == int(model.model(tokens)[0, -1].argmax())
        tokens = torch.cat([tokens, torch.tensor([[token]])], dim=1)
    (said,) = generate_texts(model.model, prompts[:1], 40, np.zeros((1, 40)), temperature=0)
    assert model.predict("the cat", temperature=0) == as_text(said)
    assert continue_text(model, "the", seed=1) == continue_text(model, "the", seed=1)
    with pytest.raises(UserError, match="the prompt has 50 bytes; expected fewer than"):
        model.predict("x" * 50)


def test_a_model_without_a_cache_says_what_one_with_a_cache_says() -> None:
    model = build_model(experiment())

    class Plain(torch.nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            samples: torch.Tensor = model(tokens)
            return samples

    tokens = torch.randint(257, (3, 6), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([6, 2, 4])
    samples = [generate(each, tokens, (), lengths, limit=15, stop=None) for each in (model, Plain())]
    assert samples[0] == samples[1]
    assert [len(said) for said in samples[0]] == [9, 13, 11]
