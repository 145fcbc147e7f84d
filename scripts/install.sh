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
echo "installing into .venv (about 3 minutes, 4 GB)"
"$python" -m venv --clear .venv
pip=(.venv/bin/python -m pip -qq --disable-pip-version-check)
torch=$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' "$lock")
if ! "${pip[@]}" install "torch==$torch+cpu" 2>/dev/null; then
    "${pip[@]}" install "$(grep '^uv==' "$lock")"
    .venv/bin/uv pip install --quiet --python .venv/bin/python --torch-backend cpu "torch==$torch"
fi
# --no-deps: the lock is complete, and leaves out what requirements/overrides.in names.
"${pip[@]}" install --no-deps -r <(grep -v '^torch==' "$lock")
"${pip[@]}" install --no-deps --no-build-isolation -e .
touch "$stamp"
echo "installed in $((SECONDS - started)) s"
