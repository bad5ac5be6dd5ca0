import { takeInheritedSockets } from "../../src/export/socket-activation.ts";
import { NbdServer } from "../../src/export/nbd/nbd-server.ts";
import { MemoryDevice } from "../support/memory-device.ts";
import { MiB, oneExport } from "./support.ts";

// A server in a process of its own: on the sockets it was started with, or on the address it is given.
// With a further argument it leaves without closing anything.

const server = new NbdServer({
  exports: oneExport(new MemoryDevice({ size: 16 * MiB })),
  log: (level, message) => console.error(`${level}: ${message}`),
});
for (const { fd } of takeInheritedSockets(process.env)) server.adopt(fd);
const [address, leave] = process.argv.slice(2);
if (address !== undefined) await server.listen(address);
if (leave !== undefined) setTimeout(() => process.exit(7), 200);
