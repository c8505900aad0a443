package dev.wssidecar.client;

import dev.wssidecar.client.errors.SidecarException;

/** What became of one item of a batch: each stands or falls alone. */
public sealed interface BatchResult {
  /**
   * The receipt, or the refusal thrown.
   *
   * @return the receipt
   */
  Receipt receiptOrThrow();

  /**
   * The message was accepted, or had been before.
   *
   * @param receipt what became of it
   */
  record Accepted(Receipt receipt) implements BatchResult {
    @Override
    public Receipt receiptOrThrow() {
      return receipt;
    }
  }

  /**
   * The message was refused.
   *
   * @param error why
   */
  record Refused(SidecarException error) implements BatchResult {
    @Override
    public Receipt receiptOrThrow() {
      throw error;
    }
  }
}
