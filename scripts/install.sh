#!/usr/bin/env bash
# Create .venv with the locked dependencies and this project, unless it already has exactly them.
#   PYTHON=python3.12 scripts/install.sh
# torch's CPU build comes from whatever index pip is configured with, if it has it (torch==...+cpu); otherwise uv fetches it, which knows
# where PyTorch publishes its CPU builds. Never the CUDA build: that would be gigabytes.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
lock=requirements/lock.txt
"$python" - <<'CHECK' || exit 1
import platform, sys
if not (3, 11) <= sys.version_info[:2] <= (3, 12) or sys.platform != "linux" or platform.machine() != "x86_64":
    sys.exit(f"error: Python {platform.python_version()} on {sys.platform} {platform.machine()}: expected Python 3.11 or 3.12 on Linux x86_64. "
             "Set PYTHON to such an interpreter, e.g. PYTHON=python3.12 make demo.")
CHECK
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
stamp=".venv/installed-$(cat "$lock" pyproject.toml scripts/install.sh | sha256sum | cut -c1-16)-$version"
[ -f "$stamp" ] && exit 0
started=$SECONDS
packages=$(grep -c '==' "$lock")

# Run a command and say how far the whole is: on one line that is rewritten in a terminal, else every ten seconds. pip fetches
# everything before it installs anything, so the packages there say nothing about the time left.
watched() {
    "$@" &
    local child=$! told=$SECONDS line
    trap 'kill "$child" 2>/dev/null || true' EXIT
    while kill -0 "$child" 2>/dev/null; do
        sleep 0.5
        line="installing: $(find .venv/lib/*/site-packages -maxdepth 1 -name '*.dist-info' 2>/dev/null | wc -l) of $packages packages there, $((SECONDS - started)) s"
        if [ -t 1 ]; then
            printf '\r\033[K%s' "$line"
        elif [ $((SECONDS - told)) -ge 10 ]; then
            told=$SECONDS
            printf '%s\n' "$line"
        fi
    done
    trap - EXIT
    if [ -t 1 ]; then printf '\r\033[K'; fi
    wait "$child"
}

echo "installing into .venv (about 3 minutes, 4 GB)"
"$python" -m venv --clear .venv
pip=(.venv/bin/python -m pip -qq --disable-pip-version-check)
torch=$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' "$lock")
if ! watched "${pip[@]}" install "torch==$torch+cpu" 2>/dev/null; then
    watched "${pip[@]}" install "$(grep '^uv==' "$lock")"
    watched .venv/bin/uv pip install --quiet --python .venv/bin/python --torch-backend cpu "torch==$torch"
fi
# --no-deps: the lock is complete, and leaves out what requirements/overrides.in names.
grep -v '^torch==' "$lock" > .venv/without_torch.txt
watched "${pip[@]}" install --no-deps -r .venv/without_torch.txt
"${pip[@]}" install --no-deps --no-build-isolation -e .
touch "$stamp"
echo "installed in $((SECONDS - started)) s"
