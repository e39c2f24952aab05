# Sourced by the scripts that make an environment: which Python, which torch. The caller defines `say`.
# shellcheck shell=bash
torch_version="2.13.0"

# Prints the path of a Python that treerl runs on.
find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3; do
    if command -v "$candidate" >/dev/null && "$candidate" -c \
      'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  say "Python 3.11, 3.12 or 3.13 is needed; set PYTHON=/path/to/python" >&2
  exit 1
}

# install_cpu_torch PYTHON: the CPU build from PyTorch's own index if that answers within five seconds, else
# whatever the configured package index gives.
install_cpu_torch() {
  local install=("$1" -m pip -qq --disable-pip-version-check install "torch==$torch_version")
  if "$1" - <<'PY' 2>/dev/null
import urllib.request
urllib.request.urlopen("https://download.pytorch.org/whl/cpu/torch/", timeout=5)
PY
  then
    say "installing the CPU build of torch $torch_version from PyTorch's index"
    "${install[@]}" --index-url https://download.pytorch.org/whl/cpu
  else
    say "PyTorch's index does not answer: installing torch $torch_version from the configured index"
    "${install[@]}"
  fi
}
