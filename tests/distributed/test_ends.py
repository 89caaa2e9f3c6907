"""However a rank ends, the others end, too, and who waits gets an error; scripts of users, alone and under torchrun."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipezoo import registry
from pipezoo_core.distributed import Workers
from pipezoo_core.errors import InvalidSettingError

pytestmark = [pytest.mark.slow, pytest.mark.alone]

BEGIN = """
import os, signal, sys, threading, time
import psutil
from pipezoo import registry
settings = {"dtype": "float32", "page_size": 8, "kv_cache_memory": "4MiB", "max_length": 200}
answer = {"temperature": 0.0, "ignore_eos": True}
print("begins", flush=True)
llm = registry.load(sys.argv[1], devices=["cpu", "cpu"], **settings)
children = psutil.Process().children()
print("children", *[child.pid for child in children], flush=True)
def soon(act, *arguments):
    threading.Timer(0.3, act, arguments).start()
def for_ever():
    while True:
        llm.generate("hello", max_new_tokens=150, **answer)
"""
WORKER_DIES = """
from pipezoo_core.errors import RankLostError
soon(children[0].kill)
for attempt in (for_ever, for_ever, lambda: llm.generate("he", **answer)):
    try:
        attempt()
    except RankLostError as error:
        print("lost", error, flush=True)
manager = llm.kv_managers[0]
assert manager.num_free_pages == manager.total_num_pages
again = registry.load(sys.argv[1], devices=["cpu", "cpu"], **settings)
print("again", again.generate("hello", max_new_tokens=3, **answer)[0].tokens)
"""
INTERRUPTED = """
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background ignores it
soon(os.kill, os.getpid(), signal.SIGINT)
try:
    for_ever()
except KeyboardInterrupt:
    print("goes on", len(llm.generate("hello", max_new_tokens=3, **answer)[0].tokens), flush=True)
soon(os.kill, os.getpid(), signal.SIGINT)
for_ever()
"""
ENDS = {
    "normally": ("llm.generate('hello', max_new_tokens=3, **answer)", 0),
    "by an error": ("raise SystemExit(7)", 7),
    "without a word": ("os._exit(5)", 5),
    "killed while it waits": ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    "killed in a step": ("soon(os.kill, os.getpid(), signal.SIGKILL); for_ever()", -signal.SIGKILL),
    "terminated in a step": ("soon(os.kill, os.getpid(), signal.SIGTERM); for_ever()", -signal.SIGTERM),
}


NO_MEMORY = """
from pipezoo_core.distributed import collectives
collectives.can_signal = lambda: False
"""


def run(script, *arguments, launcher=()):
    """Runs a script to its end and waits for all processes that it has started."""
    command = [sys.executable, *launcher, script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=540)
    for number in re.findall(r"^children (\d+)", done.stdout, re.MULTILINE):
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(int(number)).wait(120)
    return done


def write(tmp_path, code):
    path = tmp_path / "script.py"
    path.write_text(BEGIN + code)
    return path


def test_a_worker_that_dies_ends_running_and_later_requests(tiny_gguf, tmp_path):
    done = run(write(tmp_path, WORKER_DIES), tiny_gguf)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("lost the process of rank 1 is gone") + done.stdout.count("lost a process") == 3
    assert done.stdout.count("load the model again") == 3
    assert re.search(r"again \[\d+, \d+, \d+\]", done.stdout)


@pytest.mark.parametrize("how", ENDS)
def test_workers_end_with_rank_0(how, tiny_gguf, tmp_path):
    code, status = ENDS[how]
    done = run(write(tmp_path, code), tiny_gguf)
    assert done.returncode == status, done.stderr
    assert done.stdout.count("begins") == 1  # the workers do not run the script
    assert not done.stderr


def test_an_interrupted_step_is_finished_before(tiny_gguf, tmp_path):
    done = run(write(tmp_path, INTERRUPTED), tiny_gguf)
    assert "goes on 3" in done.stdout
    assert done.stderr.splitlines()[-1] == "KeyboardInterrupt"
    assert done.returncode == -signal.SIGINT


INTERRUPTED_LOAD = """
import os, signal, sys, threading
import psutil
from pipezoo import registry
from pipezoo.loading import parallel
signal.signal(signal.SIGINT, signal.default_int_handler)
def interrupted(plan, group):
    children = psutil.Process().children()
    print("children", *[child.pid for child in children], flush=True)
    {act}
parallel.build_pipeline = interrupted
registry.load(sys.argv[1], devices=["cpu", "cpu"], dtype="float32", kv_cache_memory="4MiB")
"""


@pytest.mark.parametrize(
    "act",
    [
        pytest.param("os.kill(os.getpid(), signal.SIGINT)", id="while the other loads, or waits for this one"),
        pytest.param(
            "children[0].suspend(); threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()",
            id="while this one waits for the other",
        ),
    ],
)
def test_an_interrupted_load_ends_the_others_quietly(act, tiny_gguf, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED_LOAD.replace("{act}", act))
    done = run(script, tiny_gguf)
    assert done.stdout.startswith("children ")
    assert done.stderr.splitlines()[-1] == "KeyboardInterrupt"
    assert done.stderr.count("Traceback") == 1, done.stderr
    assert "gloo/" not in done.stderr  # where its messages come from
    assert done.returncode == -signal.SIGINT


TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
LAUNCHED = """
assert not children
print("rank", os.environ["RANK"], llm.generate("hello", max_new_tokens=3, **answer)[0].tokens, flush=True)
try:
    registry.load(sys.argv[1], devices=["cpu", "cpu"], **settings)
except ValueError as error:
    print(error)
"""


def test_the_same_script_under_torchrun(tiny_gguf, tmp_path):
    alone = run(
        write(tmp_path, "print('rank 0', llm.generate('hello', max_new_tokens=3, **answer)[0].tokens)"), tiny_gguf
    )
    launched = run(write(tmp_path, LAUNCHED), tiny_gguf, launcher=TORCHRUN)
    assert launched.returncode == 0, launched.stderr
    assert launched.stdout.count("begins") == 2
    answers = [re.findall(r"^rank .*", done.stdout, re.MULTILINE) for done in (alone, launched)]
    assert answers[0] == answers[1]
    assert len(answers[1]) == 1
    assert "serve a model already" in launched.stdout


def test_what_goes_wrong_under_torchrun(tiny_gguf, tmp_path):
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(tiny_gguf.read_bytes()[:-100])
    done = run(write(tmp_path, ""), damaged, launcher=TORCHRUN)
    assert done.returncode == 1
    assert "is not a whole GGUF file" in done.stderr
    done = run(write(tmp_path, ""), tiny_gguf, launcher=(*TORCHRUN[:-1], "3"))
    assert done.returncode == 1
    assert "found: 3 processes; allowed: one for each of the 2 devices" in done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": "abc"}, "RANK is not what a launcher .*found: abc"),
        ({"RANK": "2"}, "RANK is no rank .*found: 2; allowed: 0 to 1"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE is not"),
        ({"MASTER_PORT": "first"}, "MASTER_PORT is not"),
    ],
)
def test_what_no_launcher_sets(changes, message, tiny_gguf, monkeypatch):
    launched = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in (launched | changes).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSettingError, match=message):
        registry.load(tiny_gguf, devices=["cpu", "cpu"])


def test_a_rank_killed_under_torchrun(tiny_gguf, tmp_path):
    """Each rank prints its number before it loads; the launcher ends the others when one is gone."""
    code = "soon(os.kill, os.getpid(), signal.SIGKILL); for_ever()"
    done = run(write(tmp_path, code), tiny_gguf, launcher=TORCHRUN)
    assert done.returncode == 1
    left = [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or ())]
    assert not left


STOPPED = """
from pipezoo_core.errors import RankLostError
def while_stopped(rank, act):
    soon(rank.suspend)
    try:
        act()
    except RankLostError as error:
        print("lost", error, flush=True)
"""
STOPS = {
    "in a step": "while_stopped(children[0], for_ever)",
    "before a step": "children[0].suspend(); while_stopped(children[0], for_ever)",
    "at its end": "children[0].suspend(); del llm",
}


def write_with_timeout(tmp_path, code, *, through_memory=True):
    path = write(tmp_path, STOPPED + code)
    text = path.read_text().replace("200}", '200, "rank_timeout": 2}')
    path.write_text(text if through_memory else NO_MEMORY + text)
    return path


@pytest.mark.parametrize("through_memory", [True, False])
@pytest.mark.parametrize("when", STOPS)
def test_a_rank_that_is_stopped(when, through_memory, tiny_gguf, tmp_path):
    script = write_with_timeout(tmp_path, STOPS[when], through_memory=through_memory)
    done = run(script, tiny_gguf)
    assert done.returncode == 0, done.stderr
    said = "lost the process of rank 1 shows no sign of life (found: none for 2 seconds)"
    assert (said in done.stdout) == (when != "at its end")


LAUNCHED_AND_STOPPED = """
other = next(p for p in psutil.Process().parent().children() if p.pid != os.getpid())
while_stopped(other, for_ever)
other.kill()
"""


@pytest.mark.parametrize("through_memory", [True, False])
def test_a_rank_that_is_stopped_under_torchrun(through_memory, tiny_gguf, tmp_path):
    script = write_with_timeout(tmp_path, LAUNCHED_AND_STOPPED, through_memory=through_memory)
    done = run(script, tiny_gguf, launcher=TORCHRUN)
    assert "lost the process of rank 1 shows no sign of life (found: none for 2 seconds)" in done.stdout, done.stderr


SLOW = """
import time
from pipezoo_core.decoder import DecoderPipelineModel
step = DecoderPipelineModel._serve_step
def slowly(*told):
    print("slowly", flush=True)
    time.sleep(5)
    step(*told)
DecoderPipelineModel._serve_step = slowly
"""


def test_a_rank_that_computes_for_longer_than_the_timeout(tiny_gguf, tmp_path):
    """The other rank imports as its site's customization what slows its steps down; rank 0 is spared."""
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(SLOW)
    path = os.pathsep.join([str(tmp_path / "slow"), *sys.path])
    script = write_with_timeout(tmp_path, "print(len(llm.generate('hello', max_new_tokens=1, **answer)[0].tokens))")
    script.write_text(f"import os\nos.environ['PYTHONPATH'] = {path!r}\n{script.read_text()}")
    done = run(script, tiny_gguf)
    assert done.returncode == 0, done.stderr
    assert "slowly" in done.stdout
    assert done.stdout.splitlines()[-1] == "1"


FORKED = """
child = os.fork()
if child == 0:
    del llm
    sys.exit()  # in due form, so that everything ends that ends with a process
assert os.waitpid(child, 0)[1] == 0
answers = [llm.generate("hello", max_new_tokens=3, **answer)[0].tokens for _ in range(2)]
assert answers[0] == answers[1]
if os.fork() == 0:
    time.sleep(600)  # it has the ends of all pipes
print("child", psutil.Process().children()[-1].pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_forked_children_neither_end_the_ranks_nor_keep_them(tiny_gguf, tmp_path):
    output = tmp_path / "output"
    with output.open("w") as file:
        command = [sys.executable, write(tmp_path, FORKED), tiny_gguf]
        status = subprocess.run(command, stdout=file, stderr=file, timeout=120).returncode
    (rank,) = re.findall(r"^children (\d+)", output.read_text(), re.MULTILINE)
    (child,) = re.findall(r"^child (\d+)", output.read_text(), re.MULTILINE)
    try:
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(int(rank)).wait(60)
    finally:
        psutil.Process(int(child)).kill()
    assert status == -signal.SIGKILL, output.read_text()


def test_the_place_where_ranks_met_is_never_another_file(tmp_path):
    """torch's store writes to its path once more when it ends, whenever that is."""
    workers = Workers(0, "nowhere", "nobody")
    before = workers._store.path.stat()
    workers.stop()
    with contextlib.ExitStack() as files:
        for number in range(30):
            files.enter_context((tmp_path / str(number)).open("w+"))
        assert os.path.samestat(workers._store.path.stat(), before)


KILLED_LOAD = """
import os, signal, sys
import psutil
from pipezoo import registry
from pipezoo.loading import parallel
from pipezoo_core.distributed import collectives, launch
def die(*_, **__):
    print("children", *[child.pid for child in psutil.Process().children()], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
{place} = die
registry.load(sys.argv[1], devices=["cpu", "cpu"], dtype="float32", kv_cache_memory="4MiB")
"""


@pytest.mark.parametrize(
    "place",
    ["launch.Workers.tell", "launch.join_local", "collectives.map_signal_buffers", "parallel.build_pipeline"],
)
def test_a_killed_load_leaves_nothing_behind(place, tiny_gguf, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    before = set(Path("/dev/shm").iterdir())
    script = tmp_path / "script.py"
    script.write_text(KILLED_LOAD.replace("{place}", place))
    done = run(script, tiny_gguf)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not list((tmp_path / "temporary").iterdir())
    assert not [path for path in set(Path("/dev/shm").iterdir()) - before if "pipezoo" in path.name]
