#!/usr/bin/env bash
# Check and measure one accelerator in one command, from the root of a clone, without a network:
#
#   experiments/launch/accelerator_check.sh OUT --wheels=wheels --data=cifar10.npz --peers=checkouts
#   experiments/launch/accelerator_check.sh OUT --tiny        # the same on a CPU, with tiny sizes: minutes
#
# Stages: install, environment, data, tests, benchmark, transformer, peers, training, sampling, evaluation. Each has a time
# limit and writes OUT/report.md, OUT/report.json and OUT/log.txt as it ends; one that fails or is cut never stops the next.
# Training takes the minutes that the others leave; what it saved last is sampled and scored.
#
#   OUT                 folder of the results (default: $OUT); at most eight files
#   --minutes=13        minutes in all (with --tiny 8)
#   --stages=a,b        only these; where one command may not take so long, give two commands with one --work
#   --work=FOLDER       scratch folder (default: a new one)
#   --wheels=FOLDER     packages that the machine lacks (accelerator_wheels.sh); installed beside its own into FOLDER/venv of --work
#   --data=PATH         folder of images, or .npz; without it training sees SYNTHETIC pictures
#   --peers=FOLDER      checkouts of other programs to be timed next to ours, in FOLDER/edm and FOLDER/dit (experiments/peers)
#   --peer_python=PATH  interpreter that has PyTorch, for the peers (default: the one that runs everything)
#   PYTHON              interpreter (default: .venv/bin/python if it is there, else python3)
#
# What a machine without a network lacks is prepared elsewhere and travels with the clone, in a folder that git ignores, such as
# build/check (about 20 MiB, and the data):
#
#   experiments/launch/accelerator_wheels.sh build/check/wheels
#   git clone --depth 1 https://github.com/NVlabs/edm build/check/peers/edm                # 2 MiB
#   git clone --depth 1 https://github.com/facebookresearch/DiT build/check/peers/dit     # 7 MiB
#   rm -rf build/check/peers/*/.git                           # or copying programs may leave them out, as repositories of their own
#
# Where one command may take ten minutes and the machine is lent for fifteen, two commands share one report:
#
#   given="--work=build/work --wheels=build/check/wheels --data=build/check/cifar10.npz --peers=build/check/peers"
#   experiments/launch/accelerator_check.sh OUT $given --minutes=8 --stages=install,environment,tests,benchmark,transformer
#   experiments/launch/accelerator_check.sh OUT $given --minutes=5 --stages=data,peers,training,sampling
set -uo pipefail
cd "$(dirname "$0")/../.." || exit
usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 2; }
fail() { echo "error: $*" >&2; exit 2; }

out='' minutes='' stages='' work='' wheels='' data='' peers='' peer_python='' tiny=''
for argument; do
  case $argument in
    --tiny) tiny=1 ;;
    --minutes=*|--stages=*|--work=*|--wheels=*|--data=*|--peers=*|--peer_python=*)
      name=${argument%%=*}; printf -v "${name#--}" %s "${argument#*=}" ;;
    -h|--help) usage ;;
    -*) fail "unknown argument $argument; --help lists those that exist" ;;
    *) [ -z "$out" ] || fail "two folders of results, $out and $argument; give one"
      out=$argument ;;
  esac
done
out=${out:-${OUT:-}}
[ -n "$out" ] || usage
minutes=${minutes:-$([ -n "$tiny" ] && echo 8 || echo 13)}
[[ $minutes =~ ^[1-9][0-9]{0,3}$ ]] || fail "--minutes=$minutes: write a whole number from 1 to 9999"
all="install environment data tests benchmark transformer peers training sampling evaluation"
stages=${stages:-${all// /,}}
for name in ${stages//,/ }; do [[ " $all " == *" $name "* ]] || fail "--stages: there is no $name; there are: $all"; done
for name in wheels data peers peer_python; do [ -z "${!name}" ] || [ -e "${!name}" ] || fail "--$name=${!name} does not exist"; done
if [ -n "$peers" ]; then peers=$(realpath "$peers"); fi
if [ -n "$peer_python" ]; then peer_python=$(realpath --no-symlinks "$peer_python"); fi

deadline=$(( $(date +%s) + 60 * minutes ))
left() { echo $(( deadline - $(date +%s) )); }
work=${work:-$(mktemp -d)}
mkdir -p "$out" "$work"
out=$(realpath "$out") work=$(realpath "$work")
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
if [ -x "$work/venv/bin/python" ]; then python=$work/venv/bin/python; fi
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 GIT_OPTIONAL_LOCKS=0
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$work/compiled}
if [ -n "$tiny" ]; then
  export JAX_PLATFORMS=cpu
else # the kernels that XLA chose by timing them are kept for the other stages, and for the next command with this --work
  mkdir -p "$work/autotune"
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_per_fusion_autotune_cache_dir=$work/autotune"
fi
parts() { "$python" experiments/launch/accelerator_stages.py "$@" --work="$work" --out="$out"; }

# stage NAME SECONDS FUNCTION: run it if it was chosen and there is time, record the result, and write the report
stage() {
  local name=$1 limit=$2 status=0 began result
  [[ ",$stages," == *",$name,"* ]] || return 0
  if [ "$limit" -gt "$(left)" ]; then limit=$(left); fi
  if [ "$limit" -lt 5 ]; then
    result="not run: no time was left"
  else
    began=$(date +%s) LIMIT=$limit
    echo "== $name, at most $limit s" | tee -a "$out/log.txt" >&2
    "$3" >"$work/$name.out" 2>>"$out/log.txt" || status=$?
    cat "$work/$name.out" >>"$out/log.txt"
    case $status in
      0) result='done' ;;
      124|137) result="cut after $limit s" ;;
      *) result="FAILED with status $status, see log.txt" ;;
    esac
  fi
  echo "{\"stage\": \"$name\", \"result\": \"$result\", \"seconds\": $(( $(date +%s) - ${began:-$(date +%s)} )), \"limit\": $limit}" \
    >>"$work/stages.jsonl"
  parts report >>"$out/log.txt" 2>&1 || echo "the report could not be written, see $out/log.txt" >&2
  echo "   $name: $result" >&2
}
limited() { timeout --signal=TERM --kill-after=15 "$LIMIT" "$@"; }
experiment() { limited "$python" -m "experiments.$1" "${@:2}"; }

# A venv that sees the packages of the interpreter, also if that is in a venv itself, and has the wheels besides
install() {
  local base=$python
  [ -n "$wheels" ] || { echo "No --wheels: the packages of $base."; return 0; }
  "$base" -m venv --system-site-packages --without-pip "$work/venv" || return
  local site; site=$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))') || return
  "$base" -c 'import site; print(*(f"import site; site.addsitedir({p!r})" for p in site.getsitepackages()), sep="\n")' >"$site/base.pth"
  limited "$base" -m pip --python "$work/venv/bin/python" install --quiet --disable-pip-version-check --no-index --no-deps --no-compile \
    --find-links "$wheels" "$wheels"/*.whl >&2 || return
  python=$work/venv/bin/python
  echo "Installed $(find "$wheels" -name '*.whl' | wc -l) wheels beside the packages of $base."
}
environment() { parts environment; }
data() { parts data --data="$data" ${tiny:+--tiny}; }

tests() {
  local workers=() # they compile most of the time
  if [ -z "$tiny" ] && "$python" -c 'import xdist' 2>/dev/null; then workers=(-n 4 --dist load); fi
  ACCELERATOR_TESTS=$([ -n "$tiny" ] && echo cpu || echo required) XLA_PYTHON_CLIENT_PREALLOCATE=false \
    limited "$python" -m pytest tests/accelerator "${workers[@]}" -vv --tb=short -p no:cacheprovider -W default -W "error:Some donated buffers"
}

# Networks are those of the papers; with --tiny they have a few channels
net=("--config=configs/cifar10.py:edm,ddpmpp")
transformer=(--config=configs/imagenet256_latent.py:flow --config.data.batch_size=128)
times=(--repeats=10 --batch_size=256 --nfe=18)
samplers='ancestral.ddim;ode.edm_heun@karras' nfe=35
run=(--config.training.steps=400_000 --config.training.log_every=50 --config.training.checkpoint_every=500
  --config.optimizer.warmup=300)
if [ -n "$tiny" ]; then
  net=(--config=configs/cifar10.py:edm --config.model.width=8 "--config.model.multipliers=(1,)" --config.model.blocks=1
    "--config.model.attention=()" --config.model.head_width=8 --config.data.batch_size=16)
  transformer=("--config=configs/imagenet256_latent.py:flow,S" --config.model.width=16 --config.model.depth=1 --config.model.heads=1
    --config.data.batch_size=2 --config.training.steps_per_call=1 --config.model.dtype=float32)
  times=(--repeats=2 --batch_size=4 --nfe=3)
  samplers=ancestral.ddim nfe=3
  run=(--config.training.steps=100 --config.training.log_every=10 --config.training.checkpoint_every=20)
fi
benchmark() {
  experiment benchmark "${net[@]}" "${times[@]}" --shape=32,32,3 --parts="training,sampling" \
    --samplers="$samplers" --out="$work/benchmark.json"
}
transformer() { experiment benchmark "${transformer[@]}" "${times[@]}" --shape=32,32,4 --classes=1000 --parts=training --out="$work/transformer.json"; }
peers() {
  local entries=() other=${peer_python:-$python}
  if [ -d "$peers/edm" ]; then entries+=("edm=$peers/edm"); fi
  if [ -d "$peers/dit" ]; then entries+=("dit=$peers/dit"); fi
  if "$other" -c 'import diffusers' 2>/dev/null; then entries+=(diffusers); fi
  if [ -d "$peers/edm" ]; then entries+=("adm=$peers/edm"); fi # the largest, if there is time
  [ ${#entries[@]} -gt 0 ] || { echo "$peers has neither edm nor dit, and diffusers is not installed" >&2; return 1; }
  experiment benchmark --parts=peers --peers="$(IFS=';'; echo "${entries[*]}")" --peer_python="$other" --repeats="$([ -n "$tiny" ] && echo 2 || echo 10)" \
    --preset="$([ -n "$tiny" ] && echo tiny || echo accelerator_quick)" --nfe="$([ -n "$tiny" ] && echo 2 || echo 10)" \
    --out="$work/peers.json"
}

# Until LIMIT: SIGTERM makes the run save, and what is saved is used. A run that crashes is started again, once
training() {
  local until=$(( $(date +%s) + LIMIT )) status=1
  local -a keys; mapfile -t keys < <(parts data-flags) || return
  [ ${#keys[@]} -gt 0 ] || { echo "the stage data has not run" >&2; return 1; }
  for _ in 1 2; do
    LIMIT=$(( until - $(date +%s) )); [ "$LIMIT" -gt 5 ] || break
    experiment train "${net[@]}" "${keys[@]}" "${run[@]}" --workdir="$work/run" --config.optimizer.schedule=constant \
      --config.optimizer.learning_rate=1e-3 --config.ema.halflives=100_000, --config.training.eval_every=0 \
      --config.training.sample_every=0 >&2
    status=$?
    case $status in 0|124|137) break ;; esac
  done
  [ "$status" != 137 ] || echo "training was killed while it saved; the checkpoint before is used" >&2
  ls "$work"/run/checkpoints/[0-9]* >/dev/null && case $status in 124|137) return 0 ;; *) return "$status" ;; esac
}
sampling() {
  experiment sample --workdir="$work/run" --num="$([ -n "$tiny" ] && echo 8 || echo 100)" --out="$work/samples" --nfe=$nfe &&
    cp "$work/samples.png" "$out"
}
evaluation() {
  local features=classifier count=10000
  if [ -n "$tiny" ]; then features=thumbnails count=64; fi
  if [ -f ~/.cache/diffusion_jax/weights/inception.npz ] && [ -z "$tiny" ]; then features+=,inception; fi
  experiment evaluate --workdir="$work/run" --num=$count --repeats=1 --features=$features --metrics=frechet --nfe=$nfe &&
    cp "$work/run/evaluation.json" "$work/evaluation.json"
}

reserve=0 # seconds that training leaves to the stages after it
if [[ ",$stages," == *,sampling,* ]]; then reserve=$((reserve + 45)); fi
if [[ ",$stages," == *,evaluation,* ]]; then reserve=$((reserve + 105)); fi
# a second command with the same --work adds its stages to the report of the first
if [ -f "$work/stages.jsonl" ]; then
  grep -v -E "\"stage\": \"(${stages//,/|})\"" "$work/stages.jsonl" >"$work/stages.before"
  mv "$work/stages.before" "$work/stages.jsonl"
fi
stage install 90 install
stage environment 60 environment
stage data 60 data
stage tests 240 tests
stage benchmark 200 benchmark
stage transformer 100 transformer
if [ -n "$peers" ]; then stage peers 300 peers; fi
most=$(( $(left) - reserve - 20 )) # saving takes seconds
stage training "$most" training
stage sampling 60 sampling
stage evaluation 120 evaluation
for file in run/metrics.jsonl run/loss.png; do [ ! -f "$work/$file" ] || cp "$work/$file" "$out"; done
echo "results: $out/report.md; scratch, to be deleted: $work" >&2
grep -q '"result": "\(FAILED\|not run\)' "$work/stages.jsonl" && exit 1 || exit 0
