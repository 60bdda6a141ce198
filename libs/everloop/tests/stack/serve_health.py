"""A gRPC server with nothing but a health service: `serve_health.py ADDRESS [SECONDS UNTIL SERVING]`."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

address, *delay = sys.argv[1:]
servicer = health.HealthServicer()
servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
server = grpc.server(ThreadPoolExecutor(2))
health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
server.add_insecure_port(address)
server.start()
threading.Event().wait(float(delay[0]) if delay else 0)
servicer.set("", health_pb2.HealthCheckResponse.SERVING)
server.wait_for_termination()
