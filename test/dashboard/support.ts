import type { TestContext } from "node:test";
import { ApiListener } from "../../src/api/api-listener.ts";
import { buildApi } from "../../src/api/app.ts";
import { Tokens } from "../../src/api/tokens.ts";
import type { Ullage } from "../../src/daemon/ullage.ts";
import { formatListenAddress } from "../../src/export/listen-address.ts";
import { atEnd, openUllage } from "../daemon/support.ts";

/** A daemon as `serve` makes one, with its API on a TCP port of this machine. */
export interface TestDashboard {
  ullage: Ullage;
  /** of the page, with a slash at its end */
  url: string;
  /** allows everything */
  token: string;
  /** the port of `url`, for a second server there */
  port: number;
  /** Another one that allows everything. */
  makeToken(name: string): Promise<string>;
  removeToken(name: string): Promise<void>;
  /** Ends the API, as if the daemon had gone; its volumes stay. */
  closeApi(): Promise<void>;
  /** Opens it again on the same port. */
  openApi(): Promise<void>;
}

export async function startDashboard(t: TestContext): Promise<TestDashboard> {
  const ullage = await openUllage(t, { allowSources: ["any"] });
  const tokens = await Tokens.open(ullage.health().dataDirectory);
  const app = await buildApi(ullage, () => undefined, { tokens });
  const { secret } = await tokens.create("dashboard", "admin", null);
  const listen = (port: number): Promise<ApiListener> =>
    ApiListener.listen({ kind: "tcp", host: "127.0.0.1", port }, (incoming, outgoing) =>
      app.routing(incoming, outgoing),
    );
  let listener: ApiListener | undefined = await listen(0);
  const address = formatListenAddress(listener.address);
  const port = Number(address.split(":").at(-1));
  const closeApi = async (): Promise<void> => {
    await listener?.close();
    listener = undefined;
  };
  atEnd(t, closeApi);
  return {
    ullage,
    url: `http://${address}/`,
    token: secret,
    port,
    async makeToken(name) {
      return (await tokens.create(name, "admin", null)).secret;
    },
    removeToken: (name) => tokens.remove(name),
    closeApi,
    async openApi() {
      listener = await listen(port);
    },
  };
}
