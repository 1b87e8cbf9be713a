"""A file system of fsspec for tests: `disk:///folder/run` are files of this machine, as if they were in a bucket."""

import fsspec
from fsspec.implementations.local import LocalFileSystem


class Disk(LocalFileSystem):
    protocol = "disk"

    def __init__(self, **options):
        super().__init__(**{**options, "auto_mkdir": True})

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("disk://"))


fsspec.register_implementation("disk", Disk, clobber=True)
