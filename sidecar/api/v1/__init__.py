"""The stubs of the package sidecar.api.v1: messages in `*_pb2`, services in `*_pb2_grpc`."""
