"""What a control group of Linux leaves its processes, in version 1 and 2 and in mixtures of both.

The files are those of the kernel's documentation: admin-guide/cgroup-v1/memory and admin-guide/cgroup-v2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["memory_left"]


@dataclass(frozen=True, slots=True)
class _Version:
    limit: str
    usage: str
    reclaimable: tuple[str, ...]  # keys of memory.stat: pages of files, which give way


_VERSIONS = {
    "cgroup": _Version("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")),
    "cgroup2": _Version("memory.max", "memory.current", ("active_file", "inactive_file")),
}


def memory_left(process: Path = Path("/proc/self")) -> int | None:
    """Returns how many bytes a process may still take; None where no limit is in force.

    A limit may be the process's own group's or that of any group around it, as far as they can be seen. Cached pages of
    files are not in the way: the kernel drops them first.

    Args:
        process: its folder below /proc.
    """
    try:
        folders = list(_folders(process))
    except (OSError, ValueError):  # not Linux, or nothing that is known
        return None
    return min((left for version, folder in folders if (left := _left(version, folder)) is not None), default=None)


def _folders(process: Path) -> Iterator[tuple[_Version, Path]]:
    """Yields the folders of the groups that the process is in, the innermost first."""
    groups = {}
    for line in (process / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            groups["cgroup" if controllers else "cgroup2"] = path
    for line in (process / "mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        (_, _, _, root, mount_point, *_), (kind, _, options) = before.split(), after.split(maxsplit=2)
        if kind not in groups or (kind == "cgroup" and "memory" not in options.split(",")):
            continue
        group = Path(groups[kind])  # may lie outside of what a container sees of the tree
        inner = group.relative_to(root) if group.is_relative_to(root) else Path()
        for folder in (inner, *inner.parents):
            yield _VERSIONS[kind], Path(mount_point) / folder


def _left(version: _Version, folder: Path) -> int | None:
    try:
        limit, usage = (int((folder / name).read_text()) for name in (version.limit, version.usage))
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # the root has no such files, and "max" is no number
        return None
    return max(0, limit - usage + sum(int(stat.get(key, 0)) for key in version.reclaimable))
