#!/usr/bin/env bash
# Collects the packages that a Python with torch, on a machine without internet, lacks to run autoresearch.
#
#   benchmarks/offline.sh DIR [--python 3.12] [--torch-there]
#
# DIR gets wheels for Linux on x86-64, about 56 MiB. Copy it to the machine beside a checkout of this project and run
#
#   python benchmarks/gpu.py --site DIR
#
# Left out: torch itself, pyarrow (only to read parquet) and scipy (only for statistics over several seeds; without it,
# set `judge: greedy` in program.md). --torch-there also leaves out what often comes with torch, such as numpy: 40 MiB.
set -euo pipefail

usage() { sed -n 's/^# \{0,1\}//; 2,11p' "$0"; exit "$1"; }
fail() { echo "offline.sh: $1" >&2; usage 1 >&2; }

directory='' version=3.12 there=
while [ $# -gt 0 ]; do
  case $1 in
    --python) version=${2:?--python needs a version, such as 3.12}; shift ;;
    --torch-there) there=yes ;;
    -h | --help) usage 0 ;;
    -*) fail "unknown option $1" ;;
    *) directory=$1 ;;
  esac
  shift
done
[ -n "$directory" ] || fail "name a directory for the wheels"

here=$(cd "$(dirname "$0")/.." && pwd)
python=$([ -x "$here/.venv/bin/python" ] && echo "$here/.venv/bin/python" || echo python3)
mapfile -t wanted < <("$python" - "$here/pyproject.toml" <<'END'
import re, sys, tomllib
for line in tomllib.load(open(sys.argv[1], "rb"))["project"]["dependencies"]:
    if re.match(r"[\w-]+", line)[0] not in ("torch", "pyarrow", "scipy"):
        print(line)
END
)

mkdir -p "$directory"
"$python" -m pip download --quiet --only-binary=:all: --python-version "$version" --implementation cp \
  --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
  --dest "$directory" "${wanted[@]}"
if [ -n "$there" ]; then
  rm -f "$directory"/{numpy,filelock,typing_extensions,markupsafe,packaging}-*.whl
fi
du -sh "$directory"
