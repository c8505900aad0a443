"""The generated stubs of the gRPC contract, one package a version; never edited by hand."""
