"""Signed manifests (C2PA) in MP4, GIF, PNG, WebP and JPEG, beside WebM.

The file to write is another than the one to read: c2pa-python empties a file
that it is to sign in its own place.
"""

import dataclasses
import io
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import spacetime
from spacetime import SettingError
from spacetime.media.files import atomic_write, check_file
from spacetime.provenance import watermark
from spacetime.provenance.keys import SigningKey

TYPES = {
  '.mp4': 'video/mp4',
  '.gif': 'image/gif',
  '.png': 'image/png',
  '.webp': 'image/webp',
  '.jpg': 'image/jpeg',
  '.jpeg': 'image/jpeg',
  '.webm': 'video/webm',
}
BESIDE = ('.webm',)  # formats without room for a manifest
SIDECAR = '.c2pa'
REMOTE = 'manifest.remote'  # problem: it lies elsewhere and is not fetched
_SOURCE = 'http://cv.iptc.org/newscodes/digitalsourcetype/'
GENERATED = f'{_SOURCE}trainedAlgorithmicMedia'
COMPOSITE = f'{_SOURCE}compositeWithTrainedAlgorithmicMedia'
GENERATION = 'org.spacetime.generation'
SOFT_BINDING = 'c2pa.soft-binding'
# A file may name any address as that of its manifest; none is fetched.
_REMOTE_ERROR = 'Remote:'
_OFFLINE = {'remote_manifest_fetch': False, 'ocsp_fetch': False}
# Thumbnails would add up to 0.5 MB to each image.
_SETTINGS = {
  'builder': {'thumbnail': {'enabled': False}},
  'verify': _OFFLINE,
}
# Files of this type are read as bytes without manifests.
_BYTES = 'application/octet-stream'
# Failures of an ingredient whose manifests can still be kept: it was changed,
# or signed by somebody unknown. Others may make the new manifest invalid.
_KEPT_FAILURES = re.compile(r'.*\.mismatch|(signingCredential|timeStamp)\..*')
_USES = (
  'cawg.ai_generative_training',
  'cawg.ai_training',
  'cawg.data_mining',
)


@dataclasses.dataclass(frozen=True)
class Ingredient:
  """A file that a video was made from; its own manifests are kept.

  Attributes:
    path: the file.
    is_parent: whether the video is an edit of it, and not only an input.
  """

  path: pathlib.Path
  is_parent: bool = False


@dataclasses.dataclass(frozen=True)
class Report:
  """What a file's manifest says.

  Attributes:
    state: 'trusted', 'valid' (by an unknown signer), 'invalid' or
      'not_present'.
    issuer: organization of the certificate.
    generator: program that made the file.
    signed_at: time of the signature, if it is there.
    actions: names of the actions.
    generation: our assertion, empty in files of others.
    payload: payload of the watermark that the manifest names, or None.
    ingredients: title and relationship of each ingredient.
    problems: codes of what failed.
  """

  state: str
  issuer: str | None = None
  generator: str | None = None
  signed_at: str | None = None
  actions: tuple[str, ...] = ()
  generation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  payload: int | None = None
  ingredients: tuple[Mapping[str, Any], ...] = ()
  problems: tuple[str, ...] = ()


def sign(
  source: str | os.PathLike,
  target: str | os.PathLike,
  key: SigningKey,
  *,
  generation: Mapping[str, Any],
  payload: int | None = None,
  ingredients: Sequence[Ingredient] = (),
  generated: bool = True,
) -> pathlib.Path:
  """Writes a signed copy of a file.

  Args:
    source: the file, of a suffix in TYPES.
    target: another file; a WebM gets its manifest as TARGET.c2pa.
    key: the signing key.
    generation: plain values about the generation, such as seed and hashes.
    payload: payload of the watermark in the frames.
    ingredients: files that it was made from.
    generated: whether a model made it, or a part of it; else the manifest says
      only that the parent was opened and published.

  Returns:
    The target.

  Raises:
    SettingError: another suffix, or the target is the source.
    ValueError: the file cannot be signed.
  """
  import c2pa

  source, target = pathlib.Path(source), pathlib.Path(target)
  media_type = media_type_of(source)
  if source.resolve() == target.resolve():
    raise SettingError('out', str(target), 'another file than the source')
  signer = c2pa.Signer.from_info(
    c2pa.C2paSignerInfo(
      b'es256', key.chain.encode(), key.private.encode(), None
    )
  )
  definition = _definition(
    source, generation, payload, ingredients, generated=generated
  )
  beside = source.suffix.lower() in BESIDE
  try:
    with (
      c2pa.Context.from_dict(_SETTINGS) as context,
      c2pa.Builder.from_json(json.dumps(definition), context) as builder,
      atomic_write(target) as temporary,
    ):
      for i, ingredient in enumerate(ingredients):
        _add_ingredient(builder, ingredient, f'input-{i}', context)
      if beside:
        builder.set_no_embed()
      with source.open('rb') as data, temporary.open('w+b') as out:
        manifest = builder.sign(signer, media_type, data, out)
      if beside:
        temporary.write_bytes(source.read_bytes())
        with atomic_write(sidecar(target)) as path:
          path.write_bytes(manifest)
  except c2pa.C2paError as e:
    raise ValueError(f'{source} cannot be signed ({e})') from e
  return target


def verify(path: str | os.PathLike, *, roots: Sequence[str] = ()) -> Report:
  """Reads and checks the manifest of any file.

  Args:
    path: the file; a manifest beside it is found by its name.
    roots: certificates of roots to trust, PEM.

  Raises:
    SettingError: another suffix.
    ValueError: no such file.
  """
  import c2pa

  path = pathlib.Path(path)
  media_type = media_type_of(path)
  check_file(path)
  settings = {'verify': {'verify_trust': True, **_OFFLINE}}
  if roots:
    settings['trust'] = {'trust_anchors': '\n'.join(roots)}
  beside = sidecar(path)
  data = beside.read_bytes() if beside.is_file() else None
  if data is None and path.suffix.lower() in BESIDE:
    return Report('not_present')
  try:
    with (
      c2pa.Context.from_dict(settings) as context,
      path.open('rb') as file,
    ):
      reader = c2pa.Reader.try_create(media_type, file, data, context=context)
      if reader is None:
        return Report('not_present')
      with reader:
        return _report(json.loads(reader.json()))
  except (c2pa.C2paError, ValueError, KeyError) as e:
    if str(e).startswith(_REMOTE_ERROR):
      return Report('not_present', problems=(REMOTE,))
    return Report('invalid', problems=(str(e)[:200],))


def sidecar(path: pathlib.Path) -> pathlib.Path:
  """FILE.webm.c2pa for FILE.webm."""
  return path.with_name(path.name + SIDECAR)


def media_type_of(path: pathlib.Path) -> str:
  """The media type of a file by its suffix.

  Raises:
    SettingError: another suffix.
  """
  media_type = TYPES.get(path.suffix.lower())
  if media_type is None:
    raise SettingError('file', str(path), f'a file of {", ".join(TYPES)}')
  return media_type


def _definition(
  source, generation, payload, ingredients, *, generated: bool
) -> dict[str, Any]:
  software = {'name': 'spacetime', 'version': spacetime.__version__}
  labels = [f'input-{i}' for i in range(len(ingredients))]
  parents = [
    label
    for label, ingredient in zip(labels, ingredients, strict=True)
    if ingredient.is_parent
  ]
  inputs = [label for label in labels if label not in parents]
  edited = {'softwareAgent': software, 'digitalSourceType': COMPOSITE}
  if parents:
    actions = [
      {'action': 'c2pa.opened', 'parameters': {'ingredientIds': parents[:1]}},
      {'action': 'c2pa.edited', **edited},
    ]
  else:
    created = {'softwareAgent': software, 'digitalSourceType': GENERATED}
    actions = [{'action': 'c2pa.created', **created}]
  if not generated:
    actions[1:] = [{'action': 'c2pa.published', 'softwareAgent': software}]
  if inputs:
    actions[-1]['parameters'] = {'ingredientIds': inputs}
  assertions = [
    {
      'label': 'cawg.training-mining',
      'data': {'entries': {use: {'use': 'notAllowed'} for use in _USES}},
    },
    *([{'label': GENERATION, 'data': dict(generation)}] if generation else []),
  ]
  if payload is not None:
    actions.append({'action': 'c2pa.watermarked.bound'})
    assertions.append(
      {
        'label': SOFT_BINDING,
        'data': {
          'alg': watermark.NAME,
          'blocks': [{'scope': {}, 'value': f'{payload:08x}'}],
        },
      }
    )
  return {
    'claim_generator_info': [software],
    'title': source.name,
    'assertions': [
      {'label': 'c2pa.actions.v2', 'data': {'actions': actions}},
      *assertions,
    ],
  }


def _add_ingredient(
  builder, ingredient: Ingredient, label: str, context
) -> None:
  """Adds a file to a builder, with its manifests, also those beside it.

  Manifests are left out if they are damaged so much that nothing reads them, or
  if they lie at another address.
  """
  path = ingredient.path
  media_type = media_type_of(path)
  description = {
    'title': path.name,
    'label': label,
    'instance_id': label,
    'relationship': 'parentOf' if ingredient.is_parent else 'inputTo',
  }
  report = _store(path, context)
  beside = sidecar(path)
  if report is None:
    media_type = _BYTES
  elif report and beside.is_file():
    name = f'{label}{SIDECAR}'
    builder.add_resource(name, io.BytesIO(beside.read_bytes()))
    description |= {
      'manifest_data': {'format': 'application/c2pa', 'identifier': name},
      'active_manifest': report['active_manifest'],
      'validation_results': report['validation_results'],
    }
  with path.open('rb') as file:
    builder.add_ingredient(json.dumps(description), media_type, file)


def _store(path: pathlib.Path, context) -> dict[str, Any] | None:
  """The reader's JSON of a file's manifests: {} if there are none, None if
  they are broken."""
  import c2pa

  beside = sidecar(path)
  data = beside.read_bytes() if beside.is_file() else None
  if data is None and path.suffix.lower() in BESIDE:
    return {}
  try:
    with path.open('rb') as file:
      reader = c2pa.Reader.try_create(
        media_type_of(path), file, data, context=context
      )
      if reader is None:
        return {}
      with reader:
        store = json.loads(reader.json())
  except (c2pa.C2paError, ValueError) as e:
    return {} if str(e).startswith(_REMOTE_ERROR) else None
  failures = _failures(store)
  return store if all(map(_KEPT_FAILURES.fullmatch, failures)) else None


def _report(store: Mapping[str, Any]) -> Report:
  """A report of the reader's JSON."""
  manifest = store['manifests'][store['active_manifest']]
  assertions = {a['label']: a['data'] for a in manifest.get('assertions', ())}
  signature = manifest.get('signature_info', {})
  actions = next(
    (
      a['actions']
      for k, a in assertions.items()
      if k.startswith('c2pa.actions')
    ),
    (),
  )
  generators = manifest.get('claim_generator_info') or [{}]
  payload = None
  binding = assertions.get(SOFT_BINDING, {})
  if binding.get('alg') == watermark.NAME:
    payload = int(binding['blocks'][0]['value'], 16)
  return Report(
    state=store.get('validation_state', 'Invalid').lower(),
    issuer=signature.get('issuer'),
    generator=' '.join(
      str(generators[0][k]) for k in ('name', 'version') if k in generators[0]
    )
    or None,
    signed_at=signature.get('time'),
    actions=tuple(action['action'] for action in actions),
    generation=assertions.get(GENERATION, {}),
    payload=payload,
    ingredients=tuple(
      {
        'title': ingredient.get('title'),
        'relationship': ingredient.get('relationship'),
        'manifest': ingredient.get('active_manifest'),
      }
      for ingredient in manifest.get('ingredients', ())
    ),
    problems=_failures(store),
  )


def _failures(store: Mapping[str, Any]) -> tuple[str, ...]:
  """Codes of what failed in the active manifest of the reader's JSON."""
  results = store.get('validation_results', {})
  failures = results.get('activeManifest', {}).get('failure', ())
  return tuple(failure['code'] for failure in failures)
