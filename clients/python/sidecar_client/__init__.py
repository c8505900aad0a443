"""The Python client of ws-sidecar.

An agent service takes users' messages and answers them with `Agent`; any service sends to users with
`AsyncSidecarClient` (asyncio) or `SidecarClient` (threads); a user's program receives with `connect`. Errors are one
tree, in `sidecar_client.errors`.
"""

from sidecar_client.agent import Agent
from sidecar_client.agent_context import AgentContext
from sidecar_client.agent_events import AgentEvent, Away, Back, Closed, InboundMessage, Opened
from sidecar_client.agent_stream import Subscription
from sidecar_client.client import AsyncSidecarClient
from sidecar_client.connection import Tuning, UserConnection, connect
from sidecar_client.errors import ConnectionEnded, SidecarError, TransportError
from sidecar_client.events import ContextReplaced, Event, Gap, Limits, Message, ResumeState, StreamChunk
from sidecar_client.messages import BatchItem, MessageOptions
from sidecar_client.replies import ReplyStream
from sidecar_client.sender import Sender
from sidecar_client.sender_core import SenderLimits, StreamCancellation
from sidecar_client.sync_client import SidecarClient
from sidecar_client.sync_sender import SyncSender
from sidecar_client.values import (
    BroadcastResult,
    BroadcastScope,
    ContentType,
    ContextFacts,
    ContextGrant,
    ContextToken,
    DeliveryState,
    Durability,
    ManagerStats,
    Receipt,
    StreamPlace,
    StreamState,
    UserContext,
)

__version__ = "0.1.0"
__all__ = [
    # being an agent
    "Agent",
    "AgentContext",
    "AgentEvent",
    "Subscription",
    "Opened",
    "Away",
    "Back",
    "Closed",
    "InboundMessage",
    "ReplyStream",
    # sending
    "AsyncSidecarClient",
    "SidecarClient",
    "Sender",
    "SyncSender",
    "SenderLimits",
    "StreamCancellation",
    # what is sent
    "BatchItem",
    "BroadcastScope",
    "ContentType",
    "Durability",
    "MessageOptions",
    "StreamPlace",
    "StreamState",
    # what is answered
    "BroadcastResult",
    "ContextFacts",
    "ContextGrant",
    "ContextToken",
    "DeliveryState",
    "ManagerStats",
    "Receipt",
    "UserContext",
    # receiving
    "connect",
    "UserConnection",
    "Tuning",
    "Event",
    "Message",
    "StreamChunk",
    "Gap",
    "ContextReplaced",
    "ResumeState",
    "Limits",
    # what goes wrong
    "SidecarError",
    "TransportError",
    "ConnectionEnded",
]
