import pytest
import torch

from dreambooth.trainer.data import text_cache
from dreambooth.trainer.data.store import TensorStore
from dreambooth.trainer.data.text_cache import CachedText, LiveText, TextEncoder, TokenText
from dreambooth.trainer.models.embeddings import Embeddings

CPU = torch.device("cpu")


class Counting:
    """Encodes a text to numbers of its own, and remembers what it was asked."""

    def __init__(self, *, pooled: bool = False) -> None:
        self.asked: list[str] = []
        self.pooled = pooled

    def __call__(self, text: str) -> Embeddings:
        self.asked.append(text)
        length = float(len(text))
        return Embeddings(torch.full((77, 4), length), torch.full((3,), -length) if self.pooled else None)


def test_each_caption_is_encoded_once_and_batches_are_looked_up():
    encode = Counting()
    source = CachedText(["a", "bbb", "", "a"], TextEncoder("id", encode), CPU)
    assert encode.asked == ["a", "bbb", ""]
    batch = source.batch(["", "bbb", "", "a"]).context
    assert batch.shape == (4, 77, 4)
    assert batch[:, 0, 0].tolist() == [0, 3, 0, 1]
    assert encode.asked == ["a", "bbb", ""]


def test_rows_are_sent_to_the_device_without_making_the_host_wait(monkeypatch):
    sent = []
    monkeypatch.setattr(text_cache, "to_device", lambda tensor, device: sent.append(tensor) or tensor)
    source = CachedText(["a", "bbb"], TextEncoder("id", Counting(pooled=True)), CPU)
    assert source.batch(["bbb", "a"]).context[:, 0, 0].tolist() == [3, 1]
    assert [rows.tolist() for rows in sent] == [[1, 0]]


def test_what_is_stored_is_not_encoded_again_unless_the_encoder_is_another(tmp_path):
    store, encode = TensorStore(tmp_path), Counting()
    progress: list[tuple[int, int]] = []
    CachedText(["a", "b"], TextEncoder("one", encode), CPU, store=store)
    again = CachedText(
        ["c", "b"], TextEncoder("one", encode), CPU, store=store, progress=lambda *done: progress.append(done)
    )
    assert encode.asked == ["a", "b", "c"]
    assert progress == [(0, 1), (1, 1)]
    assert again.batch(["b", "c"]).context[:, 0, 0].tolist() == [1, 1]
    CachedText(["a", "b"], TextEncoder("two", encode), CPU, store=store)
    assert encode.asked == ["a", "b", "c", "a", "b"]


def test_stopping_in_the_middle_keeps_what_was_encoded(tmp_path):
    store, encode = TensorStore(tmp_path), Counting()

    def stop(done: int, of: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CachedText(["a", "b"], TextEncoder("one", encode), CPU, store=store, progress=stop)
    CachedText(["a", "b"], TextEncoder("one", encode), CPU, store=store)
    assert encode.asked == ["a", "b"]


def test_live_text_gives_the_same_as_cached():
    encode = Counting()
    live = LiveText(TextEncoder("id", encode), CPU)
    cached = CachedText(["a", "bb"], TextEncoder("id", encode), CPU)
    assert torch.equal(*(source.batch(["bb", "a", "bb"]).context for source in (live, cached)))
    assert encode.asked.count("bb") == 2  # once each


def test_tokens_are_stacked_and_remembered():
    asked = []

    def tokenize(text: str) -> torch.Tensor:
        asked.append(text)
        return torch.full((2, 77), len(text))

    source = TokenText(tokenize, CPU)
    batch = source.batch(["a", "bb", "a"])
    assert batch.shape == (3, 2, 77) and batch.dtype == torch.int64
    assert batch[:, 1, 5].tolist() == [1, 2, 1]
    assert asked == ["a", "bb"]


def test_the_pooled_output_is_kept_and_looked_up_beside_the_context(tmp_path):
    store, encode = TensorStore(tmp_path), Counting(pooled=True)
    encoder = TextEncoder("one", encode, pooled=True)
    first = CachedText(["a", "bbb"], encoder, CPU, store=store)
    again = CachedText(["a", "bbb"], encoder, CPU, store=store)
    assert encode.asked == ["a", "bbb"]
    for source in (first, again, LiveText(encoder, CPU)):
        batch = source.batch(["bbb", "a", "bbb"])
        assert batch.context.shape == (3, 77, 4) and batch.pooled.shape == (3, 3)
        assert batch.pooled[:, 0].tolist() == [-3, -1, -3] and batch.context[:, 0, 0].tolist() == [3, 1, 3]


def test_a_caption_whose_pooled_output_is_lost_is_encoded_again(tmp_path):
    store, encode = TensorStore(tmp_path), Counting(pooled=True)
    CachedText(["a"], TextEncoder("one", Counting()), CPU, store=store)  # only its context is there
    CachedText(["a"], TextEncoder("one", encode, pooled=True), CPU, store=store)
    assert encode.asked == ["a"]
