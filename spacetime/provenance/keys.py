"""Signing keys: a root, a leaf that it certifies, and a watermark key.

  FOLDER/signing.pem     private key of the leaf (0600)
  FOLDER/chain.pem       certificates of the leaf and the root
  FOLDER/root.pem        certificate of the root: what verifiers trust
  FOLDER/watermark.key   seed of the watermark (0600)

The root's private key is forgotten: another leaf needs another root.
"""

import dataclasses
import datetime
import hashlib
import os
import pathlib
import secrets

from spacetime import SettingError
from spacetime.media.files import atomic_folder, with_home
from spacetime.provenance.watermark import Key

FILES = ('signing.pem', 'chain.pem', 'root.pem', 'watermark.key')
# A leaf that expires makes its signatures invalid, since no time stamp of an
# authority is fetched.
YEARS = 10
ORGANIZATION = 'spacetime'


@dataclasses.dataclass(frozen=True)
class SigningKey:
  """Keys of one deployment.

  Attributes:
    folder: where they are.
    private: private key of the leaf, PEM.
    chain: certificates of the leaf and the root, PEM.
    root: certificate of the root, PEM.
    watermark: key of the watermark.
  """

  folder: pathlib.Path
  private: str = dataclasses.field(repr=False)
  chain: str = dataclasses.field(repr=False)
  root: str = dataclasses.field(repr=False)
  watermark: Key = dataclasses.field(repr=False)

  @property
  def fingerprint(self) -> str:
    """Names the key, by its root's certificate."""
    return hashlib.sha256(self.root.encode()).hexdigest()[:16]


def load(folder: str | os.PathLike) -> SigningKey:
  """Reads the keys of a folder.

  Raises:
    SettingError: files that are absent.
  """
  folder = with_home(folder)
  absent = [name for name in FILES if not (folder / name).is_file()]
  if absent:
    raise SettingError(
      'key',
      str(folder),
      f'a folder with {", ".join(absent)}',
      hint='`spacetime keys` makes one',
    )
  private, chain, root = ((folder / name).read_text() for name in FILES[:3])
  seed = bytes.fromhex((folder / FILES[3]).read_text())
  return SigningKey(folder, private, chain, root, Key(seed))


def make(
  folder: str | os.PathLike, *, organization: str = ORGANIZATION
) -> SigningKey:
  """Makes keys in a new folder.

  Args:
    folder: a folder that does not exist, or is empty.
    organization: name in the certificates, which verifiers show.

  Raises:
    SettingError: the folder holds files, or an empty name.
  """
  folder = with_home(folder)
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise SettingError('key', str(folder), 'a new folder')
  if not organization.strip() or len(organization) > 64:
    raise SettingError('organization', organization, '1 to 64 characters')
  private, chain, root = _certificates(organization.strip())
  texts = (private, chain, root, secrets.token_hex(32))
  folder.parent.mkdir(parents=True, exist_ok=True)
  with atomic_folder(folder) as temporary:
    temporary.chmod(0o700)
    for name, text in zip(FILES, texts, strict=True):
      descriptor = os.open(temporary / name, os.O_WRONLY | os.O_CREAT, 0o600)
      with os.fdopen(descriptor, 'w') as file:
        file.write(text)
  return load(folder)


def _certificates(organization: str) -> tuple[str, str, str]:
  """PEM of the leaf's private key, of both certificates, and of the root."""
  from cryptography import x509
  from cryptography.hazmat.primitives import hashes, serialization
  from cryptography.hazmat.primitives.asymmetric import ec
  from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

  now = datetime.datetime.now(datetime.UTC)

  def name(text):
    return x509.Name(
      [
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),
        x509.NameAttribute(NameOID.COMMON_NAME, f'{organization[:50]} {text}'),
      ]
    )

  def certificate(key, subject, issuer, issuer_key, *, root: bool):
    usage = dict.fromkeys(
      (
        *('content_commitment', 'key_encipherment', 'data_encipherment'),
        *('key_agreement', 'encipher_only', 'decipher_only'),
      ),
      False,
    )
    public, issuer_public = key.public_key(), issuer_key.public_key()
    builder = (
      x509.CertificateBuilder()
      .subject_name(subject)
      .issuer_name(issuer)
      .public_key(public)
      .serial_number(x509.random_serial_number())
      .not_valid_before(now - datetime.timedelta(days=1))
      .not_valid_after(now + datetime.timedelta(days=365 * YEARS))
      .add_extension(
        x509.BasicConstraints(ca=root, path_length=0 if root else None),
        critical=True,
      )
      .add_extension(
        x509.KeyUsage(
          digital_signature=not root,
          key_cert_sign=root,
          crl_sign=root,
          **usage,
        ),
        critical=True,
      )
      .add_extension(
        x509.SubjectKeyIdentifier.from_public_key(public), critical=False
      )
      .add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_public),
        critical=False,
      )
    )
    if not root:
      # The purpose that validators accept by default.
      builder = builder.add_extension(
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]),
        critical=False,
      )
    signed = builder.sign(issuer_key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode()

  root_key, leaf_key = (
    ec.generate_private_key(ec.SECP256R1()) for _ in range(2)
  )
  root_name, leaf_name = name('root'), name('signer')
  root = certificate(root_key, root_name, root_name, root_key, root=True)
  leaf = certificate(leaf_key, leaf_name, root_name, root_key, root=False)
  private = leaf_key.private_bytes(
    serialization.Encoding.PEM,
    serialization.PrivateFormat.PKCS8,
    serialization.NoEncryption(),
  ).decode()
  return private, leaf + root, root
