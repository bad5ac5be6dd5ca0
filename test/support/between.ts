import { once } from "node:events";
import { connect, createServer, type Socket } from "node:net";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { atEnd, temporaryDirectory } from "../daemon/support.ts";

/**
 * Stands between clients and a server on a unix socket. When one side of a connection ends, so does the other.
 * @param pass passes on what comes, and whatever else is to be done with it
 * @returns the path that clients are to use
 */
export async function standBetween(
  t: TestContext,
  socketPath: string,
  pass: (client: Socket, server: Socket) => void,
): Promise<string> {
  const path = join(await temporaryDirectory(t), "api.sock");
  const open = new Set<Socket>();
  const listener = createServer((client) => {
    const server = connect(socketPath);
    for (const socket of [client, server]) {
      open.add(socket);
      socket.on("error", () => undefined);
      socket.on("close", () => {
        client.destroy();
        server.destroy();
      });
    }
    pass(client, server);
  }).listen(path);
  await once(listener, "listening");
  atEnd(t, async () => {
    listener.close();
    for (const socket of open) socket.destroy();
  });
  return path;
}
