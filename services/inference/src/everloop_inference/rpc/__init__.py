"""gRPC servers of the data plane: a native one and grpcio's, for the same servicers. Knows nothing of models."""

from everloop_inference.rpc.grpcio import GrpcioServer
from everloop_inference.rpc.limits import Limits
from everloop_inference.rpc.methods import Methods
from everloop_inference.rpc.server import NativeServer, RpcServer
from everloop_inference.rpc.status import Abort

__all__ = ["Abort", "GrpcioServer", "Limits", "Methods", "NativeServer", "RpcServer"]
