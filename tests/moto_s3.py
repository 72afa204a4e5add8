"""An S3 on loopback for tests: moto's server in a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator

# before any process is started that is to use it; and nothing asks a machine of Amazon's for others
os.environ |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-tests"}
os.environ |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_DEFAULT_REGION": "us-east-1"}


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """Serve S3 for as long as the block lasts; its address."""
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


def new_storage(address: str) -> str:
    """Return the URI of an empty storage in a new bucket."""
    from pyarrow import fs

    bucket, options = f"es-{uuid.uuid4().hex[:12]}", f"scheme=http&endpoint_override={address}&region=us-east-1"
    filesystem, _ = fs.FileSystem.from_uri(f"s3://{bucket}?{options}&allow_bucket_creation=true")
    filesystem.create_dir(bucket)
    return f"s3://{bucket}/runs?{options}"
