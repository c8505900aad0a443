// @ts-check
/** What the demo agent knows. A real one asks a model here. */

const OPENING = (/** @type {string} */ user, /** @type {string} */ question) =>
  `Hello ${user}. You asked: “${question}”`;

/** @type {readonly (readonly [keywords: readonly string[], text: string])[]} */
const ANSWERS = [
  [
    ["token"],
    "A context token says where a message may go: to the one connection context that you opened, for a quarter of an " +
      "hour, and for what its scopes allow. The sidecar gave it to me with your question, and compares it with the " +
      "isolation key of every single message that I send.",
  ],
  [
    ["stop", "cancel", "enough"],
    "Press stop, and your page sends one frame: cancel, with the id of your question. The sidecar closes this stream on " +
      "the spot and tells me at once: the signal of your message is aborted, and nobody else’s. My next chunk is " +
      "refused, and my handler ends there.",
  ],
  [
    [],
    "Every word of this answer is a chunk of one response stream. All of them leave me on one gRPC stream that all users " +
      "share, on a lane that only your context token opens. Somebody else’s answer may be on the same stream right " +
      "now: it has another lane, another manager, and another socket.",
  ],
];

/**
 * The words of an answer, each with the space after it.
 *
 * @param {string} user
 * @param {string} question
 */
export function answer(user, question) {
  const asked = question.toLowerCase();
  const [, text] = ANSWERS.find(([words]) => words.length === 0 || words.some((word) => asked.includes(word))) ?? [[], ""];
  return `${OPENING(user, question)} ${text}`.split(/\s+/).map((word) => `${word} `);
}
