"""A protoc plugin for gRPC's Python stubs, which grpcio-tools carries only inside its own protoc."""

import subprocess
import sys
import tempfile
from pathlib import Path

from google.protobuf.compiler.plugin_pb2 import CodeGeneratorRequest, CodeGeneratorResponse
from google.protobuf.descriptor_pb2 import FileDescriptorSet

request = CodeGeneratorRequest.FromString(sys.stdin.buffer.read())
with tempfile.TemporaryDirectory() as folder:
    descriptors, out = Path(folder, "in.binpb"), Path(folder, "out")
    out.mkdir()
    descriptors.write_bytes(FileDescriptorSet(file=request.proto_file).SerializeToString())
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--descriptor_set_in={descriptors}"]
    subprocess.run([*command, f"--grpc_python_out={out}", *request.file_to_generate], check=True)
    response = CodeGeneratorResponse(
        supported_features=CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL
    )
    for path in sorted(out.rglob("*.py")):
        response.file.add(name=str(path.relative_to(out)), content=path.read_text())
sys.stdout.buffer.write(response.SerializeToString())
