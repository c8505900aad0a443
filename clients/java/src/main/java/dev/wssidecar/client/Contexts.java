package dev.wssidecar.client;

import java.lang.ref.ReferenceQueue;
import java.lang.ref.WeakReference;
import java.util.HashMap;
import java.util.Map;
import java.util.function.Function;

/** The contexts that somebody holds, by isolation key: what nobody else holds is not held here either. */
final class Contexts {
  private final Map<String, Held> held = new HashMap<>();
  private final ReferenceQueue<AgentContext> dropped = new ReferenceQueue<>();

  /** The context as its holders know it, or one that is made now. */
  synchronized AgentContext get(String isolationKey, Function<String, AgentContext> make) {
    forgetDropped();
    Held known = held.get(isolationKey);
    AgentContext context = known == null ? null : known.get();
    if (context == null) {
      context = make.apply(isolationKey);
      held.put(isolationKey, new Held(context, dropped));
    }
    return context;
  }

  synchronized void remove(String isolationKey) {
    held.remove(isolationKey);
  }

  private void forgetDropped() {
    for (Object each = dropped.poll(); each != null; each = dropped.poll()) {
      if (each instanceof Held reference) {
        held.remove(reference.key, reference);
      }
    }
  }

  private static final class Held extends WeakReference<AgentContext> {
    private final String key;

    private Held(AgentContext context, ReferenceQueue<AgentContext> dropped) {
      super(context, dropped);
      this.key = context.isolationKey();
    }
  }
}
