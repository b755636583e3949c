#!/usr/bin/env bash
# GPU tests and every benchmark that takes a device, on this machine's GPU:
#
#     benchmarks/gpu.sh [FOLDER]
#
# FOLDER, gpu-YYYY-MM-DD by default, gets one file of output for each part, and table.md: the date,
# the GPU, the versions, and for each part how it ended and how long it took. Exit code 1 if a part
# failed, 2 without a GPU. PYTHON names the interpreter.
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-python}

machine=$("$python" - <<'EOF'
import sys, torch
if not torch.cuda.is_available():
    sys.exit(2)
print(f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, "
      f"torch {torch.__version__}")
EOF
) 2>/dev/null || {
    echo "benchmarks/gpu.sh: PyTorch sees no GPU on this machine; run it on one, with PyTorch for CUDA installed" >&2
    exit 2
}

folder=${1:-gpu-$(date +%F)}
mkdir -p "$folder"
table=$folder/table.md
failed=0
{
    echo "$(date +%F), $(git describe --always --dirty 2>/dev/null), $machine"
    echo
    echo "| part | exit code | seconds |"
    echo "| --- | --- | --- |"
} > "$table"

part() {
    local name=$1 start=$SECONDS code
    shift
    echo "$name ..." >&2
    "$@" > "$folder/$name.txt" 2>&1
    code=$?
    [ "$code" -eq 0 ] || failed=1
    echo "| [$name]($name.txt) | $code | $((SECONDS - start)) |" >> "$table"
}

part tests "$python" -m pytest -m gpu -rs
part distill "$python" benchmarks/distill.py --device cuda --markdown
part fused_loss "$python" benchmarks/fused_loss.py --device cuda --markdown
part precompute "$python" benchmarks/precompute.py --device cuda --markdown
if "$python" -c "import vllm" 2> /dev/null; then
    part engine "$python" benchmarks/engine.py --device cuda
fi

cat "$table"
exit "$failed"
