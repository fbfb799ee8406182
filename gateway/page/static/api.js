/** What the page asks of the API, as any client does. */

/** A refusal or a failure, in the API's own words. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Names of the models that are served. Throws ApiError. */
export async function models(key) {
  const reply = await checked(await fetch("v1/models", { headers: authorized(key) }));
  return (await reply.json()).data.map((model) => model.id);
}

/**
 * A chat's answer, as it comes: an async iterator of texts, and of a number at the end: its tokens.
 * `onBegin(id)` is called with the request's id. Throws ApiError, and AbortError when `signal` is.
 */
export async function* chat(body, key, signal, onBegin) {
  const reply = await checked(
    await fetch("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json", ...authorized(key) },
      body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
      signal,
    }),
  );
  onBegin(reply.headers.get("X-Request-Id"));
  let done = false;
  for await (const data of events(reply.body)) {
    if ((done ||= data === "[DONE]")) continue; // to the stream's own end
    const event = JSON.parse(data);
    if (event.error) throw new ApiError(0, event.error.message);
    const delta = event.choices?.[0]?.delta;
    if (delta?.content) yield delta.content;
    if (event.usage) yield event.usage.completion_tokens;
  }
  if (!done) throw new ApiError(0, "the connection ended before the answer did");
}

function authorized(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function checked(reply) {
  if (reply.ok) return reply;
  const text = await reply.text();
  let message = `${reply.status} ${reply.statusText}`;
  try {
    message = JSON.parse(text).error.message;
  } catch {
    message = text.slice(0, 200) || message; // not the gateway's own words: a proxy's
  }
  throw new ApiError(reply.status, message);
}

/** The data of server-sent events, each in one line as the gateway writes them. */
async function* events(body) {
  let rest = "";
  const reader = body.getReader();
  const decoder = new TextDecoder();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const lines = (rest + decoder.decode(part.value, { stream: true })).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: ")) yield line.slice(6);
  }
}
