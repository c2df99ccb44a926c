#!/usr/bin/env bash
# Download the packages that an accelerator machine without a network lacks, for its Python 3.12 on x86-64 Linux:
#
#   experiments/launch/accelerator_wheels.sh FOLDER
#
# The machine is taken to have JAX with its CUDA packages, Flax, Optax, diffrax, scikit-learn, matplotlib and pytest of its
# own, which are left alone; PACKAGES names others than those below. Versions are those of constraints/py3.12.txt. The sum of the
# sizes is printed last (about 11 MiB). accelerator_check.sh installs the folder with --wheels=FOLDER.
set -euo pipefail
cd "$(dirname "$0")/../.."
usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 2; }
[ $# = 1 ] && [ "${1#-}" = "$1" ] || usage
folder=$1
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
packages=${PACKAGES:-array_record dm-tree docstring_parser fsspec googleapis-common-protos grain immutabledict importlib_resources \
  jinja2 markupsafe ml_collections orbax-checkpoint portpicker promise safetensors simple-parsing tabulate tensorboardX tensorflow-datasets \
  tensorflow-metadata termcolor toml tqdm}
sources=promise # they have no wheels, and are plain Python

platforms=(--platform manylinux2014_x86_64)
for glibc in 2_17 2_24 2_27 2_28; do platforms+=(--platform "manylinux_${glibc}_x86_64"); done
wheels=() built=()
for package in $packages; do
  pinned=$(grep -i "^$package==" constraints/py3.12.txt) ||
    { echo "error: constraints/py3.12.txt does not pin $package" >&2; exit 2; }
  if [[ " $sources " == *" $package "* ]]; then built+=("$pinned"); else wheels+=("$pinned"); fi
done
mkdir -p "$folder"
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
  --implementation cp "${platforms[@]}" --dest "$folder" "${wheels[@]}"
if [ ${#built[@]} -gt 0 ]; then
  "$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$folder" "${built[@]}"
fi
echo "$(du -cm "$folder"/*.whl | tail -1 | cut -f1) MiB in $folder"
