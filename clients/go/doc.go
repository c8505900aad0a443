// Package sidecar is the Go client of ws-sidecar: an agent service reaches its users through the sidecar beside it.
//
// A [Client] sends single messages, a [Sender] made by it sends many on one stream, and an [Agent] is told what its
// users say and answers them. All of them are safe for concurrent use. Errors are [*Error]; a [Reason] compares by
// [errors.Is]:
//
//	if errors.Is(err, sidecar.ErrManagerGone) { ... }
//
// The deadline of a call is its context's. A context without one gives it the client's timeout (5 seconds), over all its
// tries.
package sidecar

// Version is that of the client and of the contract that it speaks, the proto package sidecar.api.v1.
const Version = "0.1.0"
