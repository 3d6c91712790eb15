#!/usr/bin/env bash
# model-signing, as pip installs it, cannot be imported: it needs pyOpenSSL, which nothing asks for any more.
#
# Versions: model-signing 1.1.1 with sigstore 4.5.1, the newest of both.
# Expected: `pip install model-signing` gives a package that signs.
# Seen: `import model_signing` ends with ModuleNotFoundError for `OpenSSL`, also for who signs with a plain key. model-signing names sigstore, whose
#   earlier versions brought pyOpenSSL along; sigstore 4.5.1 does not, and model-signing still imports it for signatures by certificate.
# Who it hurts: pipelines that sign models, on the day when their lock is made anew.
# Way round: name pyopenssl beside it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
install() { "$work/venv/bin/pip" install --quiet --disable-pip-version-check "$@" 2>"$work/pip.log" || { cat "$work/pip.log"; exit 2; }; }
try() { "$work/venv/bin/python" -c "import model_signing" 2>&1 | tail -1 || true; }
install model-signing==1.1.1 sigstore==4.5.1
alone=$(try)
echo "import model_signing: $alone"
install pyopenssl
beside=$(try)
echo "with pyopenssl installed: ${beside:-it works}"
if [[ "$alone" == *"No module named 'OpenSSL'"* && -z "$beside" ]]; then
  echo "as described"
else
  echo "CHANGED: no longer as described above"
  exit 1
fi
