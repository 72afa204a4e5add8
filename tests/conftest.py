"""What all tests share: numpy does the work unless ES_SERVICE_COMPILED=1 is set (numba takes its time), and an S3."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator

import pytest

os.environ.setdefault("ES_SERVICE_COMPILED", "0")
# of moto's S3, before any process is started that is to use it; and nothing asks a machine of Amazon's for others
os.environ |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-tests"}
os.environ |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Moto's server of S3 in a process of its own, on loopback: its address."""
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(words, stdout=log, stderr=log)
        try:
            while not (
                found := re.search(rb"Running on http://(127\.0\.0\.1:\d+)", os.pread(log.fileno(), 1 << 16, 0))
            ):
                assert server.poll() is None, os.pread(log.fileno(), 1 << 16, 0).decode()
                time.sleep(0.05)  # polling its log
            yield found[1].decode()
        finally:
            server.terminate()
            server.wait(timeout=30)


@pytest.fixture
def s3_storage(s3_server: str) -> str:
    """The URI of an empty storage in a bucket of the test's own."""
    from pyarrow import fs

    bucket, options = f"es-{uuid.uuid4().hex[:12]}", f"scheme=http&endpoint_override={s3_server}&region=us-east-1"
    filesystem, _ = fs.FileSystem.from_uri(f"s3://{bucket}?{options}&allow_bucket_creation=true")
    filesystem.create_dir(bucket)
    return f"s3://{bucket}/runs?{options}"
