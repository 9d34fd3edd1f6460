# Sourced by scripts/generate and scripts/test: makes the virtual environment .venv in the repository.
#
# `setup` may be interrupted at any moment: a stamp is written last, and without it everything is done again,
# which costs little for what is already there.

set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)"
VENV="$ROOT/.venv"
PYTHON="$VENV/bin/python"

say() { printf '%s\n' "$*" >&2; }

fail() {
    say "$@"
    exit 2
}

# Prints the first Python that is new enough.
find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11 python3.10 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
    fail "carv3d needs Python 3.10 or newer, and there is none on the PATH: install one and run this again."
}

# stamp EXTRAS: the file that says that these extras are installed. It depends on where the repository is,
# because the environment's programs do not survive a move.
stamp() {
    local hash
    hash="$({ cat "$ROOT/setup.py" "$ROOT/constraints.txt"; printf '%s' "$ROOT"; } | cksum | tr -d ' \n')"
    printf '%s' "$VENV/.installed-${1:-base}-$hash"
}

# setup EXTRAS: makes .venv with carv3d and the extras ("" or "test,dev").
setup() {
    local extras="$1" stamp
    stamp="$(stamp "$extras")"
    [[ -e "$stamp" ]] && return
    mkdir -p "$VENV" 2>/dev/null || fail "cannot write to $ROOT: put the repository where you may write."
    # The lock makes a second script wait until the first has installed.
    (
        trap 'say "interrupted: run this again to go on."; exit 130' INT
        if command -v flock >/dev/null; then
            flock -n 9 || { say "waiting for another carv3d script that is installing ..." && flock 9; }
        fi
        [[ -e "$stamp" ]] || install "$extras"
    ) 9>"$VENV/.lock"
}

install() {
    local extras="$1" base pip
    pip=("$PYTHON" -m pip --disable-pip-version-check)
    say "carv3d: setting up $VENV (once, a few minutes) ..."
    if ! "${pip[@]}" --version >/dev/null 2>&1; then
        base="$(find_python)" || exit
        # It is half made, or its Python is gone: start anew. (`venv --clear` would remove the lock too.)
        find "$VENV" -mindepth 1 -maxdepth 1 ! -name .lock -exec rm -rf {} +
        "$base" -m venv "$VENV" || fail "$base cannot make a virtual environment (on Debian: install python3-venv)."
    fi
    rm -f "$VENV"/.installed-*
    if [[ -n "${CARV3D_TORCH_INDEX:-}" ]]; then
        "${pip[@]}" install --quiet --index-url "$CARV3D_TORCH_INDEX" \
            "$(grep -E '^torch==' "$ROOT/constraints.txt")" || fail "could not install torch (see above)."
    fi
    "${pip[@]}" install --quiet --constraint "$ROOT/constraints.txt" --editable "$ROOT${extras:+[$extras]}" ||
        fail "could not install carv3d's requirements (see above). Run this again to go on from here."
    touch "$(stamp "")" "$(stamp "$extras")"
    say "carv3d: ready."
}
