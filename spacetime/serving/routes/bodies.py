"""OpenAPI descriptions of bodies."""

import json

from spacetime.serving import fields


def video(*, required: tuple[str, ...], inputs: tuple[str, ...] = ()) -> dict:
  """A body of the fields of a video, a form or JSON.

  Args:
    required: fields that must be there.
    inputs: names of inputs; a form holds them as files.
  """
  schema = fields.schema(required=required, inputs=inputs)
  form = json.loads(json.dumps(schema))
  for name in (*inputs, *fields.MANIFESTS):
    if name in form['properties']:
      form['properties'][name] = {'type': 'string', 'format': 'binary'}
  content = {'application/json': {'schema': schema}}
  if inputs:
    content['multipart/form-data'] = {'schema': form}
  return {'requestBody': {'required': True, 'content': content}}


def of_json(properties: dict, *required: str) -> dict:
  """A body of JSON."""
  schema = {
    'type': 'object',
    'properties': properties,
    'required': list(required),
  }
  content = {'application/json': {'schema': schema}}
  return {'requestBody': {'required': True, 'content': content}}


def form(properties: dict) -> dict:
  """A form, all of whose fields must be there."""
  schema = {
    'type': 'object',
    'properties': properties,
    'required': list(properties),
  }
  content = {'multipart/form-data': {'schema': schema}}
  return {'requestBody': {'required': True, 'content': content}}
