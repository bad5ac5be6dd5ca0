/** An event as it came, its data still text. */
export interface ServerSentEvent {
  id: string;
  name: string;
  data: string;
}

/** Longer lines are no events of Ullage. */
const maxPendingCharacters = 4 * 1024 * 1024;

/** Reads server-sent events (WHATWG HTML, section 9.2) from a stream of bytes. */
export async function* readEvents(bytes: AsyncIterable<Uint8Array>): AsyncGenerator<ServerSentEvent> {
  const decoder = new TextDecoder();
  let pending = "";
  let fields = new Map<string, string>();
  for await (const chunk of bytes) {
    const lines = (pending + decoder.decode(chunk, { stream: true })).split("\n");
    pending = lines.pop()!;
    if (pending.length > maxPendingCharacters)
      throw new Error(`a line of more than ${maxPendingCharacters} characters`);
    for (const line of lines) {
      if (line === "") {
        const data = fields.get("data");
        if (data !== undefined) yield { id: fields.get("id") ?? "", name: fields.get("event") ?? "message", data };
        fields = new Map();
      } else {
        const [, name, value] = /^([^:]+)(?:: ?(.*))?$/.exec(line) ?? []; // a comment has no name
        if (name !== undefined) fields.set(name, value ?? "");
      }
    }
  }
}
