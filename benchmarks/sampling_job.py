"""Pictures a second of a sampling job, by sampler, batch size and number of processes, with the peak memory.

Each row is one job of ``vistok sample`` into a folder, started as a user starts it; several processes through torchrun,
which share the processors' threads. Loading is not counted, as in the job's own summary. The peak is the largest
resident memory of one of the job's processes: with several numbers of pictures it shows whether memory grows with them.

    python benchmarks/sampling_job.py --pictures 300 --samplers ar sjd --batches 1 8 --processes 1 2 --json rows.json

With ``--json`` every row is kept as soon as it is there, and a later call with the same file goes on with those that
are not. ``--interrupt`` ends each job once on its way and starts it again, as a user would whose machine went down: the
number of pictures must be right, and the rate is that of the second part.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vistok.files import write_json

COLUMNS = ("sampler", "batch", "processes", "pictures")


def start(case: dict, model: str, out: Path, hushed: bool = False) -> subprocess.Popen:
    """One job, as a process group of its own; ``hushed`` where it is to be ended, at which torchrun says much."""
    processes = case["processes"]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    # Behind "--", or torchrun takes --num for an option of its own.
    words = ["sample", "--model", model, "--prompt", "a red circle left of a blue square"]
    words += ["--num", str(case["pictures"]), "--sampler", case["sampler"], "--batch-size", str(case["batch"])]
    words += ["--out", str(out), "--json", f"{out}.json"]
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))}
    command = [sys.executable, *launcher, "-m", "vistok", "--", *words]
    said = subprocess.DEVNULL if hushed else None
    environment = threads | os.environ
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True)


def done(out: Path) -> int:
    """Whole pictures in a job's folder; what was not whole when a job was ended has a hidden name."""
    return len(list(out.glob("[!.]*.png")))


def interrupt(case: dict, job: subprocess.Popen, out: Path) -> None:
    """Ends a job as soon as a third of its pictures are there."""
    while job.poll() is None and done(out) < case["pictures"] / 3:
        time.sleep(0.05)
    if job.poll() is None:  # torchrun's processes are in groups of their own, and it ends them when it is asked to end
        os.killpg(job.pid, signal.SIGKILL if case["processes"] == 1 else signal.SIGTERM)
    job.wait()


def run(case: dict, model: str, out: Path, interrupted: bool) -> dict:
    """The case with its rate in pictures a second, and the peak in MiB."""
    if interrupted:
        interrupt(case, start(case, model, out, hushed=True), out)
    job = start(case, model, out)
    _, status, usage = os.wait4(job.pid, 0)  # of this job alone: its processes are the child's own
    job.returncode = os.waitstatus_to_exitcode(status)
    if job.returncode:
        raise SystemExit(f"the job of {case} ended with {job.returncode}: see what it said above.")
    if done(out) != case["pictures"]:
        raise SystemExit(f"the job of {case} left {done(out)} pictures.")
    found = json.loads(Path(f"{out}.json").read_text())
    return case | {"rate": found["pictures"] / found["seconds"], "peak": usage.ru_maxrss / 1024}


def main() -> None:
    """Run the jobs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, nargs="+", default=[300], help="of each job")
    parser.add_argument("--model", default="llamagen")
    parser.add_argument("--samplers", nargs="+", default=["ar", "sjd"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--interrupt", action="store_true", help="end each job once on its way and start it again")
    parser.add_argument("--json", type=Path, help="rows so far; a call that finds some goes on")
    options = parser.parse_args()
    rows = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    print("| sampler | batch | processes | pictures | pictures a second | peak, MiB |")
    print("|---|---|---|---|---|---|", flush=True)
    for values in itertools.product(options.samplers, options.batches, options.processes, options.pictures):
        case = dict(zip(COLUMNS, values, strict=True))
        row = next((row for row in rows if case.items() <= row.items()), None)
        if row is None:
            with tempfile.TemporaryDirectory() as folder:
                row = run(case, options.model, Path(folder) / "out", options.interrupt)
            rows.append(row)
            if options.json:
                write_json(options.json, rows)
        cells = [*values, f"{row['rate']:.2f}", f"{row['peak']:.0f}"]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
