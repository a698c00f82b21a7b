#!/usr/bin/env bash
# Fills the table of GPU figures in a Markdown file, between the lines <!-- gpu --> and <!-- /gpu -->.
#
#   benchmarks/gpu.sh docs/benchmarks.md          # on one GPU, below 8 minutes
#   TINY=1 benchmarks/gpu.sh table.md             # on a CPU with tiny sizes, to test the script
#
# What a row printed is kept in gpu-figures/ (or $FIGURES): a call that was killed goes on with the rows that are left,
# and a row that failed or ran out of its time stays "open". Remove a file there to measure its row again.
set -u
table=${1:?name the Markdown file whose table is filled, e.g. docs/benchmarks.md}
cd "$(dirname "$0")/.." || exit 2
[ -f "$table" ] || { echo "gpu.sh: there is no file '$table': name one that holds the lines <!-- gpu --> and <!-- /gpu -->" >&2; exit 2; }
if ! grep -q '^<!-- gpu -->$' "$table" || ! grep -q '^<!-- /gpu -->$' "$table"; then
  echo "gpu.sh: '$table' lacks the lines <!-- gpu --> and <!-- /gpu -->: add them where the table belongs" >&2; exit 2
fi
python=${PYTHON:-python}
figures=${FIGURES:-gpu-figures}
mkdir -p "$figures"
if [ -n "${TINY:-}" ]; then
  device=cpu
else
  device=cuda
  "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
    { echo "gpu.sh: there is no GPU here; TINY=1 runs tiny sizes on a CPU" >&2; exit 2; }
fi
size() { if [ -n "${TINY:-}" ]; then echo "$2"; else echo "$1"; fi; }  # full and tiny arguments

names=() limits=() lines=() commands=()
row() { names+=("$1") limits+=("$(size "$2" 900)") lines+=("$3") commands+=("$4"); }  # name, seconds, last lines kept, command

row kernels 90 1 "$(size 'pytest -n0 -m gpu tests/ops' 'pytest -n0 tests/ops/test_rope.py')"
row attention 60 "$(size 18 1)" "benchmarks/attention.py --device $device --cases decode ragged tree --max-keys $(size 16384 256)"
row decode-B 60 4 "benchmarks/ar_decode.py --device $device --dtype bfloat16 $(size '--batches 1 16' '--tokens 16 --batches 1 2 --repeats 1')"
row decode-XL 90 4 "benchmarks/ar_decode.py --device $device --dtype bfloat16 $(size '--preset GPT-XL --batches 1 16 --repeats 1' '--tokens 16 --batches 1 2 --repeats 1')"
row features 60 3 "benchmarks/features.py $(size '--pictures 2048 --batch-size 128 --workers 8' '--pictures 2 --side 32 --batch-size 2 --workers 0') --repeats 1"
row compress 60 "$(size 7 1)" "benchmarks/compress.py --device $device --repeats 1 $(size '--dtype bfloat16' '--tower-layers 1 --llm-layers 1 --methods vtc-cls')"
row sample 30 1 "-m vistok sample --prompt 'a red circle' --device $device --num $(size 512 2) --batch-size $(size 256 2) --seed 1 --out $figures/pictures-$device"
row sample-sjd 30 1 "-m vistok sample --prompt 'a red circle' --device $device --num $(size 64 1) --batch-size 1 --sampler sjd --out $figures/sjd-$device"

for i in "${!names[@]}"; do
  file=$figures/${names[i]}.txt
  [ -s "$file" ] && continue
  case ${commands[i]} in pytest*) run="-m ${commands[i]}" ;; *) run=${commands[i]} ;; esac
  rm -rf "$figures/pictures-$device" "$figures/sjd-$device"
  if eval "timeout ${limits[i]} $python $run" > "$file.part" 2> "$file.log"; then
    mv "$file.part" "$file"
    echo "gpu.sh: ${names[i]} done" >&2
  else
    echo "gpu.sh: ${names[i]} failed or took over ${limits[i]} s, see $file.log" >&2
  fi
done
rm -rf "$figures/pictures-$device" "$figures/sjd-$device"

describe='import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU", torch.__version__)'
machine=$("$python" -c "$describe")
{
  echo "| row | command | figures |"
  echo "|---|---|---|"
  for i in "${!names[@]}"; do
    file=$figures/${names[i]}.txt
    figure=open
    if [ -s "$file" ]; then
      figure=$(tail -n "${lines[i]}" "$file" | sed 's/|/\\|/g; s/.*/`&`/' | paste -sd '~' | sed 's/~/<br>/g')
      figure="$figure ($machine, $(date -u -r "$file" +%F))"
    fi
    echo "| ${names[i]} | \`${commands[i]}\` | $figure |"
  done
} > "$figures/table.md"
awk -v rows="$figures/table.md" '
  /^<!-- gpu -->$/ { print; print ""; while ((getline line < rows) > 0) print line; print ""; inside = 1 }
  /^<!-- \/gpu -->$/ { inside = 0 }
  !inside' "$table" > "$table.part" && mv "$table.part" "$table"
