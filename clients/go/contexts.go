package sidecar

import (
	"context"
	"unicode/utf8"

	apiv1 "ws-sidecar.dev/client/api/v1"
)

// GetContext says what the token opens. Option: Timeout.
func (c *Client) GetContext(ctx context.Context, contextToken string, options ...CallOption) (ContextFacts, error) {
	s := callSettingsFrom(options)
	answer, err := run(ctx, c, &s, unary[apiv1.GetContextRequest, apiv1.GetContextResponse]{
		method: c.contexts.GetContext, request: &apiv1.GetContextRequest{}, token: contextToken,
	})
	if err != nil {
		return ContextFacts{}, err
	}
	return ContextFacts{
		IsolationKey: answer.GetIsolationKey(),
		Context:      userContextFrom(answer.GetContext()),
		Scopes:       answer.GetScopes(),
		ExpireTime:   answer.GetExpireTime().AsTime(),
	}, nil
}

// RefreshContextToken gets another token with the same scopes, while the context lives; the old one lives on. Not
// repeated: each call mints another. Option: Timeout.
func (c *Client) RefreshContextToken(
	ctx context.Context, contextToken string, options ...CallOption,
) (ContextToken, error) {
	s := callSettingsFrom(options)
	answer, err := run(ctx, c, &s, unary[apiv1.RefreshContextTokenRequest, apiv1.RefreshContextTokenResponse]{
		method:  c.contexts.RefreshContextToken,
		request: &apiv1.RefreshContextTokenRequest{},
		token:   contextToken,
		once:    true,
	})
	if err != nil {
		return ContextToken{}, err
	}
	return ContextToken{answer.GetContextToken(), answer.GetExpireTime().AsTime()}, nil
}

// RevokeContextToken ends the token and all that was refreshed from it. Not repeated: a second answer would be
// ErrTokenRevoked. Option: Timeout.
func (c *Client) RevokeContextToken(ctx context.Context, contextToken string, options ...CallOption) error {
	s := callSettingsFrom(options)
	_, err := run(ctx, c, &s, unary[apiv1.RevokeContextTokenRequest, apiv1.RevokeContextTokenResponse]{
		method:  c.contexts.RevokeContextToken,
		request: &apiv1.RevokeContextTokenRequest{},
		token:   contextToken,
		once:    true,
	})
	return err
}

// ExchangeContextToken gets a context token for a user's own token and one of that user's contexts, by the service token.
// scopes: default those of send, emit and stats that the service is allowed. Not repeated: each call mints another.
// Option: Timeout.
func (c *Client) ExchangeContextToken(
	ctx context.Context, userToken, connectionID string, scopes []string, options ...CallOption,
) (ContextGrant, error) {
	s := callSettingsFrom(options)
	good := utf8.ValidString(userToken) && utf8.ValidString(connectionID)
	for _, scope := range scopes {
		good = good && utf8.ValidString(scope)
	}
	if !good {
		return ContextGrant{}, badRequest("user_token", "a text is UTF-8")
	}
	answer, err := run(ctx, c, &s, unary[apiv1.ExchangeContextTokenRequest, apiv1.ExchangeContextTokenResponse]{
		method: c.contexts.ExchangeContextToken,
		request: &apiv1.ExchangeContextTokenRequest{
			UserToken: userToken, ConnectionId: connectionID, Scopes: scopes,
		},
		token:   c.settings.serviceToken,
		service: true,
		once:    true,
	})
	if err != nil {
		return ContextGrant{}, err
	}
	return ContextGrant{
		IsolationKey: answer.GetIsolationKey(),
		Token:        ContextToken{answer.GetContextToken(), answer.GetExpireTime().AsTime()},
		Context:      userContextFrom(answer.GetContext()),
	}, nil
}
