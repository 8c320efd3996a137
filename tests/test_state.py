"""What a loss remembers of every sample: averaging, absence, precision, many processes."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossary import ALDRKLLoss, TruncatedGCELoss, _distributed
from lossary._state import PerSampleState
from processes import run_processes


class Memory(PerSampleState):
    """One number per sample, and nothing else."""

    def __init__(self, num_samples=5, initial=1.0):
        super().__init__()
        self._add_state("seen", num_samples, initial)

    def write(self, index, values, present=None):
        present = torch.ones_like(index, dtype=torch.bool) if present is None else present
        return self._store("seen", index, values, present)


entries = st.lists(
    st.tuples(st.integers(0, 4), st.integers(-8, 8), st.booleans()), min_size=0, max_size=12
)


@given(entries, st.randoms())
def test_the_mean_of_what_is_there_is_stored_in_any_order(batch, random):
    expected = [1.0] * 5
    for i in range(5):
        there = [v for j, v, present in batch if j == i and present]
        if there:
            expected[i] = sum(there) / len(there)
    for _ in range(2):
        random.shuffle(batch)
        memory = Memory()
        index = torch.tensor([j for j, _, _ in batch], dtype=torch.long)
        values = torch.tensor([float(v) for _, v, _ in batch], dtype=torch.float64)
        present = torch.tensor([p for _, _, p in batch], dtype=torch.bool)
        out = memory.write(index, values, present)
        torch.testing.assert_close(memory.seen, torch.tensor(expected))
        # What is there comes back as it is stored, in full precision; the rest as it came.
        stored = torch.tensor(expected, dtype=torch.float64)[index]
        torch.testing.assert_close(out, torch.where(present, stored, values), rtol=1e-14, atol=0)


def test_values_that_are_not_there_may_be_anything():
    memory = Memory()
    index = torch.tensor([2, 2, 3])
    values = torch.tensor([torch.nan, 4.0, torch.inf])
    memory.write(index, values, torch.tensor([False, True, False]))
    assert memory.seen.tolist() == [1.0, 1.0, 4.0, 1.0, 1.0]


def test_logarithms_of_what_is_averaged():
    class Logs(Memory):
        def write(self, index, values):
            present = torch.ones_like(index, dtype=torch.bool)
            return self._store("seen", index, values, present, log=True)

    memory = Logs(initial=-torch.inf).double()
    index = torch.tensor([2, 0, 2, 2])
    # Their exponentials overflow, or vanish.
    values = torch.tensor([2000.0, -3000.0, 1000.0, 2000.0], dtype=torch.float64)
    out = memory.write(index, values)
    mean = 2000.0 + math.log(2.0 / 3.0)
    torch.testing.assert_close(out, out.new_tensor([mean, -3000.0, mean, mean]))
    seen = out.new_tensor([-3000.0, -torch.inf, mean, -torch.inf, -torch.inf])
    torch.testing.assert_close(memory.seen, seen)


def test_several_axes():
    memory = Memory()
    out = memory.write(torch.tensor([[0, 1], [1, 4]]), torch.tensor([[1.0, 2.0], [4.0, 5.0]]))
    assert out.tolist() == [[1.0, 3.0], [3.0, 5.0]]
    assert memory.seen.tolist() == [1.0, 3.0, 1.0, 1.0, 5.0]


def test_the_state_has_the_precision_of_the_module():
    memory = Memory().bfloat16()
    out = memory.write(torch.tensor([0]), torch.tensor([1.0 + 2**-12]))
    assert memory.seen.dtype is torch.bfloat16
    assert out.item() == 1.0 + 2**-12
    assert memory._stored("seen", torch.tensor([0]), torch.float32).dtype is torch.float32


def test_what_was_read_does_not_change_with_a_later_write():
    memory = Memory()
    read = memory._stored("seen", torch.tensor([0, 1]), torch.float32)
    memory.write(torch.tensor([0]), torch.tensor([7.0]))
    assert read.tolist() == [1.0, 1.0]


def test_reset_brings_every_buffer_back():
    class Two(Memory):
        def __init__(self):
            super().__init__()
            self._add_state("other", 5, -3.0)

    memory = copy.deepcopy(Two())
    memory.seen += 1
    memory.other += 1
    memory.reset()
    assert memory.seen.tolist() == [1.0] * 5
    assert memory.other.tolist() == [-3.0] * 5


@pytest.mark.parametrize(
    ("num_samples", "error", "says"),
    [
        (0, ValueError, "at least 1, got 0"),
        (-3, ValueError, "at least 1, got -3"),
        (2.0, TypeError, r"an int, got float \(2.0\)"),
        (True, TypeError, "an int, got bool"),
        (None, TypeError, "an int, got NoneType"),
    ],
)
def test_num_samples_is_a_positive_int(num_samples, error, says):
    with pytest.raises(error, match=f"num_samples: expected {says}"):
        Memory(num_samples)


LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
TARGET = torch.tensor([0, 2])


@pytest.mark.parametrize(
    "loss",
    [ALDRKLLoss(5), TruncatedGCELoss(mode="prune", num_samples=5)],
    ids=lambda loss: type(loss).__name__,
)
@pytest.mark.parametrize(
    ("index", "error", "says"),
    [
        ([0, 1], TypeError, "a tensor, got list"),
        (None, TypeError, "a tensor, got NoneType"),
        (torch.tensor([0.0, 1.0]), TypeError, "integer dataset indices, got torch.float32"),
        (torch.tensor([True, False]), TypeError, "integer dataset indices, got torch.bool"),
        (torch.tensor([0]), ValueError, r"one per sample, shape \(2,\), got \(1,\)"),
        (torch.tensor([[0], [1]]), ValueError, r"one per sample, shape \(2,\), got \(2, 1\)"),
        (torch.tensor([0, 5]), ValueError, r"dataset indices in \[0, 5\), got 5"),
        (torch.tensor([-1, 0]), ValueError, r"dataset indices in \[0, 5\), got -1"),
        (torch.tensor([0, 1], device="meta"), ValueError, "device cpu, got meta"),
    ],
)
def test_a_wrong_index_is_refused(loss, index, error, says):
    with pytest.raises(error, match=f"index: expected {says}"):
        loss(LOGITS, TARGET, index)


def test_a_missing_index_is_refused():
    with pytest.raises(TypeError, match="index"):
        ALDRKLLoss(5)(LOGITS, TARGET)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16])
def test_any_integer_dtype_of_the_index(dtype):
    loss = ALDRKLLoss(5)
    loss(LOGITS, TARGET, torch.tensor([4, 2], dtype=dtype))
    assert (loss.sample_lam < 1.0).tolist() == [False, False, True, False, True]


def test_the_state_moves_with_the_loss():
    loss = ALDRKLLoss(5).to("meta")
    assert loss.sample_lam.device.type == "meta"
    with pytest.raises(ValueError, match=r"index: expected device meta, where the state lies"):
        loss(LOGITS, TARGET, torch.tensor([0, 1]))


def test_training_goes_on_from_a_checkpoint(tmp_path):
    torch.manual_seed(0)
    whole, first = ALDRKLLoss(6), ALDRKLLoss(6)
    batches = [
        (torch.randn(4, 3), torch.randint(3, (4,)), torch.randint(6, (4,))) for _ in range(6)
    ]
    expected = [whole(*batch) for batch in batches]
    for batch in batches[:3]:
        first(*batch)
    torch.save(first.state_dict(), tmp_path / "checkpoint.pt")
    second = ALDRKLLoss(6)
    second.load_state_dict(torch.load(tmp_path / "checkpoint.pt"))
    for batch, value in zip(batches[3:], expected[3:], strict=True):
        assert torch.equal(second(*batch), value)
    assert torch.equal(second.sample_lam, whole.sample_lam)


# Many processes.


def _rank(rank, world_size):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 4, generator=generator)
    target = torch.randint(4, (9,), generator=generator)
    target[5] = -100
    index = torch.tensor([3, 1, 4, 1, 5, 9, 2, 3, 1])  # 1 and 3 on several processes
    bounds = {2: [0, 9, 9], 3: [0, 2, 7, 9]}[world_size]
    mine = slice(bounds[rank], bounds[rank + 1])
    (gathered,) = _distributed.gather_rows(index[mine])
    assert torch.equal(gathered, index)
    one = ALDRKLLoss(10, reduction="none")
    for _ in range(2):
        values = one(logits[mine], target[mine], index[mine])
    pruned = TruncatedGCELoss(mode="prune", num_samples=10)
    pruned.prune(logits[mine], target[mine], index[mine])
    torch.distributed.destroy_process_group()
    # One process with the whole batch.
    whole = ALDRKLLoss(10, reduction="none")
    for _ in range(2):
        expected = whole(logits, target, index)
    torch.testing.assert_close(values, expected[mine])
    torch.testing.assert_close(one.sample_lam, whole.sample_lam)
    alone = TruncatedGCELoss(mode="prune", num_samples=10)
    alone.prune(logits, target, index)
    assert torch.equal(pruned.sample_weight, alone.sample_weight)
    assert 0 < float((1 - alone.sample_weight).sum()) < 10


@pytest.mark.parametrize("world_size", [2, 3])
def test_every_process_stores_the_same(world_size, tmp_path):
    run_processes(_rank, world_size, tmp_path)
