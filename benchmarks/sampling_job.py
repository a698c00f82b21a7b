"""Pictures a second of a sampling job, by sampler, batch size and number of processes, with the peak memory.

Each row is one job of ``vistok sample`` into a folder, started as a user starts it; several processes through torchrun.
Loading is not counted, as in the job's own summary.

Example: ``python benchmarks/sampling_job.py --pictures 300 --samplers ar sjd --batches 1 8 --processes 1 2``
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path


def run(pictures: int, sampler: str, batch: int, processes: int, model: str, out: Path) -> dict[str, float]:
    """One job: pictures a second, and the highest peak memory of its processes in MiB."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    words = ["sample", "--model", model, "--prompt", "a red circle left of a blue square", "--num", str(pictures)]
    words += ["--sampler", sampler, "--batch-size", str(batch), "--out", str(out), "--json", str(out) + ".json"]
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))}
    subprocess.run([sys.executable, *launcher, "-m", "vistok", *words], check=True, env=threads | os.environ)
    found = json.loads(Path(f"{out}.json").read_text())
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {"rate": found["pictures"] / found["seconds"], "peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--model", default="llamagen")
    parser.add_argument("--samplers", nargs="+", default=["ar", "sjd"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    print("| sampler | batch | processes | pictures a second | highest peak so far, MiB |")
    print("|---|---|---|---|---|", flush=True)
    for sampler in args.samplers:
        for batch in args.batches:
            for processes in args.processes:
                with tempfile.TemporaryDirectory() as folder:
                    row = run(args.pictures, sampler, batch, processes, args.model, Path(folder) / "out")
                print(f"| {sampler} | {batch} | {processes} | {row['rate']:.2f} | {row['peak']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
