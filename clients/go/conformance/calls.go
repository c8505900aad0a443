package main

import (
	"context"
	"encoding/json"
	"time"

	sidecar "ws-sidecar.dev/client"
)

const readyTimeout = 15 * time.Second

// runner holds what the driver has opened.
type runner struct {
	clients *named[*sidecar.Client]
	senders *named[*sidecar.Sender]
	agents  *named[*agent]
}

// arguments are what commands come with; each heeds its own.
type arguments struct {
	Client             string          `json:"client"`
	Sender             string          `json:"sender"`
	Agent              string          `json:"agent"`
	Endpoint           string          `json:"endpoint"`
	ServiceToken       string          `json:"service_token"`
	CAFile             string          `json:"ca_file"`
	TimeoutSeconds     *float64        `json:"timeout_s"`
	ReadySeconds       *float64        `json:"ready_s"`
	IsolationKey       string          `json:"isolation_key"`
	ContextToken       string          `json:"context_token"`
	Message            message         `json:"message"`
	Messages           []message       `json:"messages"`
	ExpectedUserID     string          `json:"expected_user_id"`
	WaitForAckSeconds  *float64        `json:"wait_for_ack_s"`
	EventType          string          `json:"event_type"`
	Data               json.RawMessage `json:"data"`
	MessageID          string          `json:"message_id"`
	Items              []arguments     `json:"items"`
	Scope              string          `json:"scope"`
	Code               int             `json:"code"`
	Reason             string          `json:"reason"`
	UserToken          string          `json:"user_token"`
	ConnectionID       string          `json:"connection_id"`
	Scopes             []string        `json:"scopes"`
	ReportAcknowledged bool            `json:"report_acknowledged"`
	ServiceName        string          `json:"service_name"`
	Events             []string        `json:"events"`
	Credits            int             `json:"credits"`
	Handle             int             `json:"handle"`
	StreamID           string          `json:"stream_id"`
	Targets            []arguments     `json:"targets"`
	PayloadBytes       int             `json:"payload_bytes"`
	Seconds            float64         `json:"seconds"`
}

func (a *arguments) options() []sidecar.CallOption {
	made := []sidecar.CallOption{sidecar.ExpectedUserID(a.ExpectedUserID), sidecar.MessageID(a.MessageID)}
	if a.TimeoutSeconds != nil {
		made = append(made, sidecar.Timeout(seconds(*a.TimeoutSeconds)))
	}
	if a.WaitForAckSeconds != nil {
		made = append(made, sidecar.WaitForAck(seconds(*a.WaitForAckSeconds)))
	}
	return made
}

// begin begins a command; what it returns may wait, and goes on beside others.
func (r *runner) begin(do string, with json.RawMessage) (work, error) {
	var a arguments
	if len(with) > 0 {
		if err := json.Unmarshal(with, &a); err != nil {
			return nil, err
		}
	}
	switch do {
	case "open":
		return r.open(&a)
	case "sender_send", "sender_send_many", "sender_close":
		return r.beginSending(do, &a)
	case "agent_next", "agent_close", "context_send", "reply_send", "reply_end", "reply_fail", "reply_cancelled":
		return r.beginAgent(do, &a)
	}
	call, known := calls[do]
	if !known {
		return nil, errUnknown
	}
	client, err := r.clients.get(a.Client)
	if err != nil {
		return nil, err
	}
	if do == "sender_open" { // at once: what comes next may name it
		_, err := call(r, client, &a)
		return nil, err
	}
	return func() (any, error) { return call(r, client, &a) }, nil
}

func (r *runner) open(a *arguments) (work, error) {
	options := []sidecar.Option{sidecar.WithEndpoint(a.Endpoint)}
	if a.ServiceToken != "" {
		options = append(options, sidecar.WithServiceToken(a.ServiceToken))
	}
	if a.TimeoutSeconds != nil {
		options = append(options, sidecar.WithDefaultTimeout(seconds(*a.TimeoutSeconds)))
	}
	if a.CAFile != "" {
		config, err := sidecar.TLSFromFiles(a.CAFile, "", "")
		if err != nil {
			return nil, err
		}
		options = append(options, sidecar.WithTLS(config))
	}
	client, err := sidecar.NewClient(options...)
	if err != nil {
		return nil, err
	}
	r.clients.put(a.Client, client)
	ready := readyTimeout
	if a.ReadySeconds != nil {
		ready = seconds(*a.ReadySeconds)
	}
	return func() (any, error) {
		if ready == 0 {
			return struct{}{}, nil
		}
		ctx, cancel := context.WithTimeout(context.Background(), ready)
		defer cancel()
		return struct{}{}, client.WaitUntilReady(ctx)
	}, nil
}

func (r *runner) end() {
	for _, each := range r.agents.all() {
		each.stop(0)
	}
	for _, each := range r.clients.all() {
		_ = each.Close()
	}
}

// calls are the commands that are one call of the client each.
var calls = map[string]func(r *runner, c *sidecar.Client, a *arguments) (any, error){
	"close": func(_ *runner, c *sidecar.Client, _ *arguments) (any, error) {
		return struct{}{}, c.Close()
	},
	"send_to_user": func(_ *runner, c *sidecar.Client, a *arguments) (any, error) {
		return receiptOr(c.SendToUser(
			context.Background(), a.IsolationKey, a.ContextToken, a.Message.build(), a.options()...))
	},
	"emit_critical_event": func(_ *runner, c *sidecar.Client, a *arguments) (any, error) {
		return receiptOr(c.EmitCriticalEvent(
			context.Background(), a.IsolationKey, a.ContextToken, a.EventType, a.Data, a.options()...))
	},
	"send_batch":             sendBatch,
	"broadcast":              broadcast,
	"close_manager":          closeManager,
	"get_manager_stats":      getManagerStats,
	"get_context":            getContext,
	"refresh_context_token":  refreshContextToken,
	"exchange_context_token": exchangeContextToken,
	"revoke_context_token": func(_ *runner, c *sidecar.Client, a *arguments) (any, error) {
		return struct{}{}, c.RevokeContextToken(context.Background(), a.ContextToken, a.options()...)
	},
	"sender_open": func(r *runner, c *sidecar.Client, a *arguments) (any, error) {
		var options []sidecar.SenderOption
		if a.ReportAcknowledged {
			options = append(options, sidecar.ReportAcknowledged())
		}
		r.senders.put(a.Sender, c.Sender(options...))
		return struct{}{}, nil
	},
	"agent_open": openAgent,
	"load":       load,
}

func sendBatch(_ *runner, c *sidecar.Client, a *arguments) (any, error) {
	items := make([]sidecar.BatchItem, 0, len(a.Items))
	for _, each := range a.Items {
		items = append(items, sidecar.BatchItem{
			IsolationKey:   each.IsolationKey,
			ContextToken:   each.ContextToken,
			Message:        each.Message.build(),
			ExpectedUserID: each.ExpectedUserID,
		})
	}
	results, err := c.SendBatch(context.Background(), items, a.options()...)
	if err != nil {
		return nil, err
	}
	said := make([]any, 0, len(results))
	for _, each := range results {
		said = append(said, outcomeOf(each.Receipt, each.Err))
	}
	return map[string]any{"results": said}, nil
}

func broadcast(_ *runner, c *sidecar.Client, a *arguments) (any, error) {
	scope := sidecar.BroadcastUser
	if a.Scope == "tenant" {
		scope = sidecar.BroadcastTenant
	}
	result, err := c.Broadcast(context.Background(), a.ContextToken, scope, a.Message.build(), a.options()...)
	if err != nil {
		return nil, err
	}
	return map[string]any{
		"managers": result.Managers, "connections": result.Connections, "refused": result.Refused,
	}, nil
}

func closeManager(_ *runner, c *sidecar.Client, a *arguments) (any, error) {
	connections, err := c.CloseManager(
		context.Background(), a.IsolationKey, a.ContextToken, append(a.options(), sidecar.CloseCode(a.Code, a.Reason))...)
	return map[string]any{"connections": connections}, err
}

func getManagerStats(_ *runner, c *sidecar.Client, a *arguments) (any, error) {
	stats, err := c.GetManagerStats(context.Background(), a.IsolationKey, a.ContextToken, a.options()...)
	return map[string]any{
		"connections_managed":   stats.ConnectionsManaged,
		"messages_sent_total":   stats.MessagesSentTotal,
		"messages_failed_total": stats.MessagesFailedTotal,
		"last_activity_time":    unix(stats.LastActivityTime),
		"manager_age_seconds":   stats.ManagerAge.Seconds(),
		"cleanup_scheduled":     stats.CleanupScheduled,
		"outbox_messages":       stats.OutboxMessages,
		"outbox_bytes":          stats.OutboxBytes,
	}, err
}

func getContext(_ *runner, c *sidecar.Client, a *arguments) (any, error) {
	facts, err := c.GetContext(context.Background(), a.ContextToken, a.options()...)
	return map[string]any{
		"isolation_key": facts.IsolationKey,
		"context":       userOf(facts.Context),
		"scopes":        append([]string{}, facts.Scopes...),
		"expire_time":   unix(facts.ExpireTime),
	}, err
}

func refreshContextToken(_ *runner, c *sidecar.Client, a *arguments) (any, error) {
	token, err := c.RefreshContextToken(context.Background(), a.ContextToken, a.options()...)
	return map[string]any{"context_token": token.Text, "expire_time": unix(token.ExpireTime)}, err
}

func exchangeContextToken(_ *runner, c *sidecar.Client, a *arguments) (any, error) {
	grant, err := c.ExchangeContextToken(
		context.Background(), a.UserToken, a.ConnectionID, a.Scopes, a.options()...)
	return map[string]any{
		"isolation_key": grant.IsolationKey,
		"context_token": grant.Token.Text,
		"expire_time":   unix(grant.Token.ExpireTime),
		"context":       userOf(grant.Context),
	}, err
}
