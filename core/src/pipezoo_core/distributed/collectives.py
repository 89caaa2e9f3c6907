"""What the ranks of a model do together: sums, gathers, and messages of rank 0 to the others."""

from __future__ import annotations

import ctypes
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store

from pipezoo_core.distributed.group import TensorParallelGroup
from pipezoo_core.distributed.heartbeats import Counters, Heartbeats
from pipezoo_core.distributed.interrupts import interrupts_deferred
from pipezoo_core.distributed.liveness import Liveness, pid_namespace, rank_lost
from pipezoo_core.distributed.meeting import meet
from pipezoo_core.distributed.messages import INLINE, Message, decode, encode
from pipezoo_core.distributed.shared_file import SharedFile
from pipezoo_core.distributed.signals import SIGNAL_BUFFER_BYTES, Signals, can_signal, map_signal_buffers
from pipezoo_core.errors import RankLostError
from pipezoo_core.process_lock import ProcessLock

__all__ = ["DistributedGroup"]

_A_WHILE = timedelta(seconds=0.2)
_TO_SAY_GOODBYE = 5.0  # seconds


class DistributedGroup(TensorParallelGroup):
    """Ranks that are processes, on one host or several.

    When a rank is gone, or rank 0 leaves a step in its middle, the group cannot go on: `failure` is set and everything
    that would need the others raises a copy: what has been raised keeps alive what its frames refer to.

    Args:
        rank: of this process.
        size: how many ranks there are.
        store: where the ranks find each other.
        counters: by which rank 0 sees that the others run.
        device: that this rank computes on.
        timeout: seconds after which rank 0 gives up another rank that shows no sign of life.
        network: how the others reach this process, as gloo's `create_device` takes it: `interface` or `hostname`. None
            for what the host's name leads to.
        stop: rank 0's way to end the other processes where it started them; called once, when it closes the group.

    Raises:
        InvalidSettingError: others have no way to reach this process.
        RankLostError: the others do not come.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        store: Store,
        counters: Counters,
        device: torch.device,
        *,
        timeout: float,
        network: Mapping[str, str] | None = None,
        stop: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(rank, size)
        self.failure: RankLostError | None = None
        self._device = device
        self._stop = stop
        self._lock = threading.Lock()
        self._process = ProcessLock()
        self._is_closed = False
        self._work: dist.Work | None = None
        self._signals: Signals | None = None
        self._signal_buffers: list[Tensor] = []
        self._gloo: Any = meet(PrefixStore("gloo", store), rank, size, network)
        self._heartbeats = Heartbeats(counters, rank, size, timeout)
        self._liveness = Liveness(self._heartbeats)
        self._collectives: Any = self._gloo
        if device.type == "cuda":
            options = dist.ProcessGroupNCCL.Options()
            self._collectives = dist.ProcessGroupNCCL(PrefixStore("nccl", store), rank, size, options)
        try:
            self._share_memory()
        except BaseException as error:
            self.fail("the processes of the model did not all meet", error)
            self.close()
            raise

    @property
    def signal_buffers(self) -> list[Tensor]:
        """The memory that the ranks of one host share: uint8, one per rank; none where there is no such memory."""
        return self._signal_buffers

    def all_reduce(self, x: Tensor) -> Tensor:
        """Returns the sum over all ranks, the same on all of them; x may be overwritten.

        Raises:
            RankLostError: a rank is gone.
        """
        if self._signals is not None and x.nbytes <= Signals.max_bytes:
            return self._signals.all_reduce(x)
        x = x.contiguous()
        self._collect(lambda: self._collectives.allreduce([x]))
        return x

    def gather(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """Returns on rank 0 the parts of all ranks side by side, [rows, sum(sizes)]; on others something to ignore.

        Raises:
            RankLostError: a rank is gone.
        """
        width = max(sizes)
        if self._signals is not None and len(x) * width * x.itemsize <= Signals.max_bytes:
            parts = self._signals.exchange(x, [(len(x), size) for size in sizes])
            return torch.cat(parts, dim=-1) if self.rank == 0 else x
        padded = x.new_zeros(len(x), width)
        padded[:, : x.shape[-1]] = x
        gathered = [[torch.empty_like(padded) for _ in sizes]]
        self._collect(lambda: self._collectives.allgather(gathered, [padded]))
        return torch.cat([part[:, :size] for part, size in zip(gathered[0], sizes, strict=True)], dim=-1)

    def send(self, message: Message, lists: Sequence[Sequence[int]] = ()) -> None:
        """Sends a message from rank 0 to the others, who call `receive`."""
        numbers = encode(message, lists)
        self.broadcast(numbers[:INLINE])
        if len(numbers) > INLINE:
            self.broadcast(numbers[INLINE:])

    def receive(self) -> tuple[Message, list[list[int]]]:
        """Waits for what rank 0 sends next."""
        numbers = torch.empty(INLINE, dtype=torch.int64, device="cpu")
        self.broadcast(numbers)
        length = int(numbers[0])
        if length > INLINE:
            rest = torch.empty(length - INLINE, dtype=torch.int64, device="cpu")
            self.broadcast(rest)
            numbers = torch.cat((numbers, rest))
        return decode(numbers)

    def broadcast(self, x: Tensor) -> None:
        """Fills x, contiguous and on the host, with the numbers that it has on rank 0."""
        self._broadcast(x.view(torch.uint8))

    def exchange_objects(self, value: Any) -> list[Any]:
        """Returns the values of all ranks, in their order: what JSON can say. Slow: for a few at load."""
        return [self._broadcast_object(value, source) for source in range(self.size)]

    @contextmanager
    def step(self) -> Iterator[None]:
        """Holds together what rank 0 does in one step of all ranks.

        Ctrl-C takes effect after the step, because without its rank 0 the others could not end it. Where it is pressed
        a second time, or the step fails, the group does too.

        Raises:
            RankLostError: a rank is gone, or was before.
            ForkedProcessError: this is a forked child of rank 0. The ranks hear nothing of it.
        """
        self._process.check()
        with self._lock, interrupts_deferred():
            if self.failure is not None:
                raise copy(self.failure)
            try:
                yield
            except BaseException as error:
                self.fail("a step on several devices was left in its middle", error)
                self._end()
                raise

    def fail(self, what: str, cause: BaseException) -> None:
        """Notes why the group cannot go on, where nothing is noted yet. Nobody is told."""
        self.failure = self.failure or rank_lost(what, cause)

    def close(self) -> None:
        """Parts from the others; rank 0 lets them end. More than once does nothing, as does a forked child.

        gloo's end waits for its threads, which a forked child lacks, and for what is not completed, which never will be
        where another rank is stopped. So in these two cases gloo is left as it is.
        """
        if self._is_closed:
            return
        self._is_closed = True
        if not self._process.is_here:
            _never_destroy((self._gloo, self._work))
            return
        self._heartbeats.timeout = min(self._heartbeats.timeout, _TO_SAY_GOODBYE)
        is_idle = self._lock.acquire(blocking=False)  # else a step is being left in its middle
        if self.rank == 0 and self.failure is None and is_idle:
            with suppress(RankLostError):
                self.send(Message.end)
        self.failure = self.failure or RankLostError("the pipeline was closed", cure="Load the model again.")
        if is_idle:
            self._lock.release()
        self._end()
        self._heartbeats.end()
        if self._work is not None and not self._work.is_completed():
            _never_destroy((self._gloo, self._work))
        self._work = None
        self._gloo = self._collectives = None

    def check(self) -> None:
        """Raises RankLostError if a rank of this host is gone, or rank 0 has long seen no sign of life of another."""
        loss = self._liveness.find_loss()
        if loss is not None:
            self.failure = loss
            raise copy(self.failure)

    def _end(self) -> None:
        stop, self._stop = self._stop, None
        if stop is not None:
            stop()

    def _share_memory(self) -> None:
        """Maps the signal buffers where all ranks are on one host and compute on its CPU."""
        file = None
        if self.rank == 0 and self._device.type == "cpu" and can_signal():
            with suppress(OSError):  # no memory left, or none for us
                file = SharedFile(self.size * SIGNAL_BUFFER_BYTES)
        try:
            path = self._broadcast_object(file and str(file.path), 0)
            seen = path is not None and can_signal() and Path(path).exists()
            infos = self.exchange_objects([seen, pid_namespace(), os.getpid()])
            if not all(info[:2] == [True, infos[0][1]] for info in infos):
                return
            self._liveness.watch({rank: info[2] for rank, info in enumerate(infos) if rank != self.rank})
            self._signal_buffers = map_signal_buffers(Path(path), self.size)
            self._signals = Signals(self._signal_buffers, self.rank, self.check)
            self.exchange_objects(None)  # all have mapped it
        finally:
            if file is not None:
                file.close()

    def _broadcast(self, tensor: Tensor, source: int = 0) -> None:
        options = dist.BroadcastOptions()
        options.rootRank = source
        self._complete(lambda: self._gloo.broadcast([tensor], options))

    def _broadcast_object(self, value: Any, source: int) -> Any:
        data = bytearray(json.dumps(value).encode() if self.rank == source else b"")
        size = torch.tensor([len(data)], dtype=torch.int64, device="cpu")
        self._broadcast(size, source)
        message = torch.empty(int(size), dtype=torch.uint8, device="cpu")
        if data:
            message = torch.frombuffer(data, dtype=torch.uint8)
        self._broadcast(message, source)
        return json.loads(message.numpy().tobytes())

    def _collect(self, begin: Callable[[], dist.Work]) -> None:
        if self._collectives is self._gloo:
            self._complete(begin)
        else:  # NCCL takes a time to wait for the time after which it gives up
            with self._lost_connections():
                begin().wait()

    def _complete(self, begin: Callable[[], dist.Work]) -> None:
        """Does something through gloo. Ctrl-C is heard meanwhile, and a rank that shows no sign of life is noticed."""
        with self._lost_connections():
            self._work = begin()
            while not self._is_completed_soon():
                self.check()
            self._work = None

    def _is_completed_soon(self) -> bool:
        """Waits a while. Where that is not enough, torch raises an error, and the work goes on.

        The work has no other name than `_work`: what has been raised keeps alive what frames name, and a work that
        outlives its gloo group ends the process.
        """
        assert self._work is not None
        with suppress(RuntimeError):
            self._work.wait(_A_WHILE)
            return True
        if self._work.is_completed():
            self._work.wait()  # raises why it failed, unless it has been done just now
            return True
        return False

    @contextmanager
    def _lost_connections(self) -> Iterator[None]:
        try:
            yield
        except RankLostError:
            raise
        except KeyboardInterrupt as interrupt:
            raise interrupt from None  # it may have come while an error was handled that says nothing: see below
        except RuntimeError as error:  # what torch raises when a connection ends
            self.failure = rank_lost("a process of the model is gone", error)
            raise copy(self.failure) from error


def _never_destroy(value: object) -> None:
    """Keeps an object as it is until the process ends, and then, too."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))
