import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { TestContext } from "node:test";
import { atEnd, temporaryDirectory } from "../daemon/support.ts";

/*
 * A headless Chromium, steered over the DevTools protocol by Node's own WebSocket. Pages are used as a person uses them:
 * by pointer and keyboard events at what is visible.
 */

const startTimeoutMs = 60_000;
const closeTimeoutMs = 5_000;
const waitTimeoutMs = 20_000;
const lookEveryMs = 40;

export interface PageOptions {
  width?: number;
  height?: number;
  /** device pixels per CSS pixel */
  scale?: number;
  dark?: boolean;
  reducedMotion?: boolean;
  touch?: boolean;
}

interface Message {
  id?: number;
  method?: string;
  params?: any;
  sessionId?: string;
  result?: any;
  error?: { message: string };
}

export class Browser {
  readonly #socket: WebSocket;
  #lastId = 0;
  readonly #pending = new Map<number, { resolve(result: any): void; reject(error: Error): void }>();
  readonly #pages = new Map<string, Page>();

  private constructor(socket: WebSocket) {
    this.#socket = socket;
    socket.addEventListener("message", ({ data }) => this.#receive(JSON.parse(String(data)) as Message));
  }

  /** Started for a test, ended with it. */
  static async launch(t: TestContext): Promise<Browser> {
    const profile = await temporaryDirectory(t);
    const flags = [
      "--headless=new",
      "--no-sandbox",
      "--disable-gpu",
      "--disable-dev-shm-usage",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--hide-scrollbars",
      "--remote-debugging-port=0",
      `--user-data-dir=${join(profile, "profile")}`,
    ];
    const child = spawn("chromium", [...flags, "about:blank"], { stdio: ["ignore", "ignore", "pipe"], detached: true });
    const exited = once(child, "exit");
    const kill = (): void => {
      try {
        process.kill(-child.pid!, "SIGKILL"); // its helpers too: they would go on writing to the profile
      } catch {
        // all of them have ended
      }
    };
    atEnd(t, async () => {
      kill();
      await exited;
    });
    const socket = new WebSocket(await debuggingAddress(child));
    await once(socket, "open");
    const browser = new Browser(socket);
    atEnd(t, async () => {
      const timer = setTimeout(kill, closeTimeoutMs);
      void browser.send("Browser.close").catch(() => undefined);
      await exited;
      clearTimeout(timer);
      socket.close();
    });
    return browser;
  }

  async newPage(options: PageOptions = {}): Promise<Page> {
    const { targetId } = await this.send("Target.createTarget", { url: "about:blank" });
    const { sessionId } = await this.send("Target.attachToTarget", { targetId, flatten: true });
    const page = new Page((method, params) => this.send(method, params, sessionId));
    this.#pages.set(sessionId, page);
    await page.start(options);
    return page;
  }

  send(method: string, params: object = {}, sessionId?: string): Promise<any> {
    const id = ++this.#lastId;
    const { promise, resolve, reject } = Promise.withResolvers<any>();
    this.#pending.set(id, { resolve, reject: (error) => reject(new Error(`${method}: ${error.message}`)) });
    this.#socket.send(JSON.stringify({ id, method, params, ...(sessionId === undefined ? {} : { sessionId }) }));
    return promise;
  }

  #receive({ id, method, params, sessionId, result, error }: Message): void {
    if (id === undefined) {
      if (sessionId !== undefined) this.#pages.get(sessionId)?.note(method ?? "", params);
      return;
    }
    const waiting = this.#pending.get(id);
    this.#pending.delete(id);
    if (error === undefined) waiting?.resolve(result);
    else waiting?.reject(new Error(error.message));
  }
}

async function debuggingAddress(child: ChildProcess): Promise<string> {
  const heard: string[] = [];
  const lines = createInterface({ input: child.stderr! });
  const { promise, resolve, reject } = Promise.withResolvers<string>();
  const timer = setTimeout(() => reject(new Error(`chromium did not start:\n${heard.join("\n")}`)), startTimeoutMs);
  lines.on("line", (line) => {
    const address = /^DevTools listening on (ws:\S+)/.exec(line)?.[1];
    if (address !== undefined) resolve(address);
    else if (heard.length < 100) heard.push(line);
  });
  child.once("exit", (code) => reject(new Error(`chromium ended with ${code}:\n${heard.join("\n")}`)));
  try {
    return await promise;
  } finally {
    clearTimeout(timer);
  }
}

/** Keys by the names that pages see. */
const keyCodes: Record<string, number> = {
  Enter: 13,
  Tab: 9,
  Escape: 27,
  " ": 32,
  End: 35,
  Home: 36,
  ArrowLeft: 37,
  ArrowUp: 38,
  ArrowRight: 39,
  ArrowDown: 40,
};

export class Page {
  readonly #send: (method: string, params?: object) => Promise<any>;
  /** Console errors and warnings, exceptions, and what the browser itself complains of: policies, failed loads. */
  problems: string[] = [];

  constructor(send: (method: string, params?: object) => Promise<any>) {
    this.#send = send;
  }

  async start(options: PageOptions): Promise<void> {
    for (const domain of ["Page", "Runtime", "Log"]) await this.#send(`${domain}.enable`);
    await this.configure(options);
  }

  async configure({ width = 1280, height = 800, scale = 1, dark, reducedMotion, touch }: PageOptions): Promise<void> {
    await this.#send("Emulation.setDeviceMetricsOverride", {
      width,
      height,
      deviceScaleFactor: scale,
      mobile: touch === true,
    });
    await this.#send("Emulation.setTouchEmulationEnabled", { enabled: touch === true });
    await this.#send("Emulation.setEmulatedMedia", {
      features: [
        { name: "prefers-color-scheme", value: dark === true ? "dark" : "light" },
        { name: "prefers-reduced-motion", value: reducedMotion === true ? "reduce" : "no-preference" },
      ],
    });
  }

  note(method: string, params: any): void {
    if (method === "Runtime.exceptionThrown") {
      const { exception, text } = params.exceptionDetails;
      this.problems.push(`exception: ${exception?.description ?? text}`);
    } else if (method === "Runtime.consoleAPICalled" && ["error", "warning", "assert"].includes(params.type)) {
      const words = params.args.map((arg: any) => arg.value ?? arg.description);
      this.problems.push(`console.${params.type}: ${words.join(" ")}`);
    } else if (method === "Log.entryAdded" && ["error", "warning"].includes(params.entry.level)) {
      this.problems.push(`${params.entry.source}: ${params.entry.text} ${params.entry.url ?? ""}`);
    }
  }

  async goto(url: string): Promise<void> {
    const { errorText } = await this.#send("Page.navigate", { url });
    if (errorText !== undefined) throw new Error(`${url}: ${errorText}`);
  }

  async reload(): Promise<void> {
    await this.#send("Page.reload");
  }

  /** The value of an expression in the page; promises are awaited. */
  async evaluate<T>(expression: string): Promise<T> {
    const { result, exceptionDetails } = await this.#send("Runtime.evaluate", {
      expression,
      returnByValue: true,
      awaitPromise: true,
      userGesture: true,
    });
    if (exceptionDetails !== undefined) {
      throw new Error(`${expression}: ${exceptionDetails.exception?.description ?? exceptionDetails.text}`);
    }
    return result.value as T;
  }

  /** Waits until an expression is truthy. @returns its value */
  async waitFor<T>(expression: string): Promise<T> {
    const end = Date.now() + waitTimeoutMs;
    let failure = "";
    while (Date.now() < end) {
      try {
        const value = await this.evaluate<T>(expression);
        if (value) return value;
      } catch (error) {
        failure = (error as Error).message; // the page may be on its way to another
      }
      await new Promise((resolve) => setTimeout(resolve, lookEveryMs));
    }
    const text = await this.text().catch(() => "(nothing)");
    throw new Error(`never true: ${expression} ${failure}\nproblems: ${this.problems.join("\n")}\nthe page:\n${text}`);
  }

  /** What can be read on the page. */
  text(): Promise<string> {
    return this.evaluate<string>("document.body.innerText");
  }

  /** Waits until this text can be read. */
  async see(text: string): Promise<void> {
    await this.waitFor(`document.body.innerText.includes(${JSON.stringify(text)})`);
  }

  async unsee(text: string): Promise<void> {
    await this.waitFor(`!document.body.innerText.includes(${JSON.stringify(text)})`);
  }

  /** Clicks the middle of the first visible match, once it is there, stands still and can be pressed. */
  async click(selector: string, text?: string): Promise<void> {
    const hit = await this.#press(selector, text);
    if (!hit) await this.click(selector, text);
  }

  /** @returns false when something else had come to the place */
  async #press(selector: string, text?: string): Promise<boolean> {
    const find = `(() => {
      const open = document.querySelector("dialog[open]") ?? document;
      const all = [...open.querySelectorAll(${JSON.stringify(selector)})];
      const wanted = ${JSON.stringify(text ?? null)};
      const found = all.find((each) => each.checkVisibility() && !each.disabled &&
        (wanted === null || each.textContent.trim() === wanted));
      if (found === undefined) return null;
      found.scrollIntoView({ block: "center", behavior: "instant" });
      const { x, y, width, height } = found.getBoundingClientRect();
      window.wanted = found;
      return { x: x + width / 2, y: y + height / 2 };
    })()`;
    let { x, y } = await this.waitFor<{ x: number; y: number }>(find);
    for (;;) {
      await new Promise((resolve) => setTimeout(resolve, lookEveryMs));
      const now = await this.waitFor<{ x: number; y: number }>(find);
      if (now.x === x && now.y === y) break;
      ({ x, y } = now);
    }
    await this.pointAt(x, y);
    const there = `window.wanted.contains(document.elementFromPoint(${x}, ${y})) ||
      window.wanted.labels?.[0]?.contains(document.elementFromPoint(${x}, ${y})) === true`;
    if (!(await this.evaluate<boolean>(there))) return false;
    for (const type of ["mousePressed", "mouseReleased"]) {
      await this.#send("Input.dispatchMouseEvent", { type, x, y, button: "left", clickCount: 1 });
    }
    return true;
  }

  /** Moves the pointer. CSS pixels. */
  async pointAt(x: number, y: number): Promise<void> {
    await this.#send("Input.dispatchMouseEvent", { type: "mouseMoved", x, y });
  }

  /** Types into whatever has the focus. */
  async type(text: string): Promise<void> {
    for (const character of text) await this.#send("Input.dispatchKeyEvent", { type: "char", text: character });
  }

  /** Replaces what a field holds, as a person would. */
  async fill(selector: string, text: string): Promise<void> {
    do await this.click(selector);
    while (!(await this.evaluate<boolean>(`document.activeElement.matches(${JSON.stringify(selector)})`)));
    await this.evaluate("document.activeElement.select()");
    if (text === "") await this.press("Backspace");
    else await this.type(text);
  }

  async press(key: string, { shift = false } = {}): Promise<void> {
    const code = keyCodes[key] ?? (key === "Backspace" ? 8 : key.toUpperCase().charCodeAt(0));
    const text = key === "Enter" ? "\r" : key.length === 1 ? key : undefined;
    const event = { key, code: key, windowsVirtualKeyCode: code, modifiers: shift ? 8 : 0 };
    await this.#send("Input.dispatchKeyEvent", { type: "keyDown", ...event, ...(text === undefined ? {} : { text }) });
    await this.#send("Input.dispatchKeyEvent", { type: "keyUp", ...event });
  }

  /** Presses Tab until the focus is on a match. */
  async tabTo(selector: string, text?: string): Promise<void> {
    const there = `(() => {
      const at = document.activeElement;
      const wanted = ${JSON.stringify(text ?? null)};
      return at?.matches(${JSON.stringify(selector)}) && (wanted === null || at.textContent.trim() === wanted);
    })()`;
    for (let presses = 0; presses < 120; presses++) {
      if (await this.evaluate<boolean>(there)) return;
      await this.press("Tab");
    }
    throw new Error(`Tab never came to ${selector} ${text ?? ""}`);
  }

  /** Chooses an option of a select. */
  async choose(selector: string, value: string): Promise<void> {
    await this.evaluate(`(() => {
      const select = document.querySelector(${JSON.stringify(selector)});
      select.value = ${JSON.stringify(value)};
      select.dispatchEvent(new Event("change", { bubbles: true }));
      select.dispatchEvent(new Event("input", { bubbles: true }));
    })()`);
  }

  /** As if the cable were pulled. */
  async setOffline(offline: boolean): Promise<void> {
    await this.#send("Network.enable");
    await this.#send("Network.emulateNetworkConditions", {
      offline,
      latency: 0,
      downloadThroughput: -1,
      uploadThroughput: -1,
    });
  }

  async screenshot(path: string, { full = false } = {}): Promise<void> {
    const { data } = await this.#send("Page.captureScreenshot", { format: "png", captureBeyondViewport: full });
    await writeFile(path, Buffer.from(data as string, "base64"));
  }
}
