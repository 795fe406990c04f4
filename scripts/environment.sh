# shellcheck shell=bash
# Sourced by the scripts beside it: finds a Python, makes the virtual environment and installs pinned packages into it, once.
#
#   PYTHON         the interpreter to make the environment with (default: a tested one that is found on PATH)
#   DEQFLOW_VENV   where the environment lives (default: .venv; a relative path starts at the checkout)

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit 1
venv=${DEQFLOW_VENV:-.venv}
[[ $venv == /* ]] || venv=$root/$venv
log=$venv/install.log
stamp=$venv/deqflow-installed

fail() {
  echo "$*" >&2
  exit 1
}

# "3.12", or nothing when it does not run.
version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

can_make_environments() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

# Prints the first interpreter in 3.11 .. 3.13 that can make environments, else a newer one, which may have to wait for its wheels.
find_python() {
  local candidate version minor newer='' old='' bare=''
  local candidates=(python3 python3.13 python3.12 python3.11 python)
  [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    version=$(version_of "$candidate") || continue
    minor=${version#3.}
    if [[ $version != 3.* || $minor -lt 11 ]]; then
      old=${old:-$version}
    elif ! can_make_environments "$candidate"; then
      bare=${bare:-$version}
    elif [[ $minor -le 13 ]]; then
      command -v "$candidate"
      return
    else
      newer=${newer:-$candidate}
    fi
  done
  if [[ -n $newer ]]; then
    command -v "$newer"
  elif [[ -n $bare ]]; then
    fail "Python $bare cannot make virtual environments: install its venv package (on Debian and Ubuntu: apt install python$bare-venv)."
  elif [[ -n $old ]]; then
    fail "deqflow needs Python 3.11 or newer, and this one is Python $old: install a newer one, or name it with PYTHON=/path/to/python3."
  elif [[ -n ${PYTHON:-} ]]; then
    fail "PYTHON=$PYTHON does not run."
  else
    fail "deqflow needs Python 3.11 or newer, and no python3 was found: install one, or name it with PYTHON=/path/to/python3."
  fi
}

in_the_way() { fail "$venv is in the way: it is $1; move it away, or choose another place with DEQFLOW_VENV."; }

# The environment's interpreter runs, and is of the version that PYTHON asks for, if it does.
sound() {
  local version
  version=$(version_of "$venv/bin/python") || return
  [[ -z ${PYTHON:-} || $version == "$(version_of "$PYTHON")" ]]
}

# Makes an empty environment, unless a sound one is there. Only what this function made, or what cannot run, is ever cleared.
make_environment() {
  local python made_for
  made_for=$(cat "$venv/deqflow-root" 2>/dev/null) || made_for=''
  if [[ -n $made_for ]]; then
    # An environment holds its own path in many places: when the checkout has moved, it is made anew.
    if [[ $made_for == "$root" ]] && sound; then return; fi
  elif [[ -d $venv && -n $(ls -A "$venv") ]]; then
    [[ -e $venv/pyvenv.cfg ]] || in_the_way "not a virtual environment"
    if "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && sound; then
      "$venv/bin/python" -c 'import pip' 2>/dev/null || "$venv/bin/python" -m ensurepip >/dev/null 2>&1 || in_the_way "an environment without pip"
      return
    fi
    [[ -z $(version_of "$venv/bin/python") ]] || in_the_way "an environment of Python $(version_of "$venv/bin/python")"
  fi
  python=$(find_python) || exit 1
  "$python" -m venv --clear "$venv" >/dev/null 2>&1 ||
    fail "The virtual environment $venv could not be made: is its folder writable, and is there room on the disk?"
  echo "$root" >"$venv/deqflow-root"
}

# Runs pip quietly; on failure says in one sentence what the log shows.
install() {
  if "$venv/bin/python" -m pip --disable-pip-version-check --no-input install "$@" >>"$log" 2>&1; then
    return
  fi
  if grep -q 'Operation cancelled by user' "$log"; then
    echo "The installation was interrupted; run this again to complete it." >&2
    exit 130
  elif grep -q 'No space left on device' "$log"; then
    fail "The packages could not be installed because the disk is full (details: $log)."
  elif grep -qE 'Retrying \(|ConnectionError|Connection refused|timed out|Temporary failure|SSLError' "$log"; then
    fail "The packages could not be installed because the package registry did not answer; check the network and run this again (details: $log)."
  elif grep -q 'No matching distribution' "$log"; then
    fail "The package registry has no $(sed -n 's/.*No matching distribution found for \([^ ]*\).*/\1/p' "$log" | head -1) for this Python ($(version_of "$venv/bin/python")); try another with PYTHON=/path/to/python3 (details: $log)."
  fi
  fail "The packages could not be installed; the end of $log says why."
}

# prepare train | prepare test: afterwards $venv holds deqflow and what that takes. "test" includes "train".
prepare() {
  local level=$1 wanted found
  wanted="$(cat pyproject.toml scripts/locks/*.txt | cksum) $root"
  found=$(cat "$stamp" 2>/dev/null) || found=''
  if [[ $found == "$level $wanted" || $found == "test $wanted" ]] && sound; then return; fi
  make_environment
  echo "Installing pinned packages into $venv (a minute or two, once) ..."
  rm -f "$stamp" "$log" # an interrupted installation leaves no stamp, and the next run completes it
  export PIP_DEFAULT_TIMEOUT=${PIP_DEFAULT_TIMEOUT:-30} PIP_RETRIES=${PIP_RETRIES:-2} PIP_USER=0
  # The tools that build packages are pinned too, so that no build fetches its own; every lock is complete, so nothing is resolved.
  install --no-deps -r scripts/locks/build.txt
  install --no-deps --no-build-isolation -r "scripts/locks/$level.txt" -e .
  echo "$level $wanted" >"$stamp"
}
