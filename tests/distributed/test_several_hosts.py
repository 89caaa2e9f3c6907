"""One launcher on each of two hosts, which share no memory and reach each other through a network alone."""

import os
import shutil
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.alone]

# A host is a network namespace with a /dev/shm of its own. The first has the address 10.77.0.1, the second 10.77.0.2.
SECOND_HOST = """
set -e
mount -t tmpfs none /dev/shm
ip link set lo up
for attempt in $(seq 200); do ip link show second > /dev/null 2>&1 && break; sleep 0.05; done
ip addr add 10.77.0.2/24 dev second
ip link set second up
exec "$@" --node-rank 1 "$SCRIPT" "$MODEL"
"""
FIRST_HOST = """
set -e
mount -t tmpfs none /dev/shm
ip link set lo up
ip link add name first type veth peer name second
ip addr add 10.77.0.1/24 dev first
ip link set first up
unshare --net --mount sh -c "$SECOND_HOST" host "$@" &
trap "kill $! 2> /dev/null || true" EXIT
here=$(readlink /proc/self/ns/net)
until [ "$(readlink /proc/$!/ns/net)" != "$here" ]; do sleep 0.05; done
ip link set second netns $!
"$@" --node-rank 0 "$SCRIPT" "$MODEL"
wait $!
"""
LAUNCHER = (sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1")
MEETING = ("--master-addr", "10.77.0.1", "--master-port", "29500")
SCRIPT = """
import sys
from pipezoo import registry
settings = {"dtype": "float32", "page_size": 8, "kv_cache_memory": "4MiB", "max_length": 200}
llm = registry.load(sys.argv[1], devices=["cpu", "cpu"], **settings)
print("answer", llm.generate("hello", max_new_tokens=9, temperature=0.0, ignore_eos=True)[0].tokens)
"""


def unshare():
    """The command that makes a host, as root or as somebody who may be root in a namespace; None where nobody may."""
    if not all(map(shutil.which, ("unshare", "ip"))):
        return None
    make_link = "mount -t tmpfs none /dev/shm && ip link add name first type veth peer name second"
    for command in (["unshare", "--net", "--mount"], ["unshare", "--map-root-user", "--net", "--mount"]):
        if subprocess.run([*command, "sh", "-c", make_link], capture_output=True).returncode == 0:
            return command
    return None


def answers(done):
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("answer")]


def test_two_hosts(tiny_gguf, tmp_path):
    command = unshare()
    if command is None:
        pytest.skip("no network namespaces here")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    settings = {"capture_output": True, "text": True, "timeout": 540}
    both = subprocess.run(
        [*command, "sh", "-c", FIRST_HOST, "host", *LAUNCHER, *MEETING],
        env={**os.environ, "SCRIPT": str(script), "MODEL": str(tiny_gguf), "SECOND_HOST": SECOND_HOST},
        **settings,
    )
    alone = subprocess.run([sys.executable, script, tiny_gguf], **settings)  # starts the other process itself
    assert len(answers(both)) == 1
    assert answers(both) == answers(alone)
