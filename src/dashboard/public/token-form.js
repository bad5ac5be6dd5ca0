import { html } from "htm/preact";
import { useSignal } from "@preact/signals";
import { call } from "./api.js";
import { ActionForm } from "./parts.js";
import { forgetToken, keepToken, tokenRefused, tokenWanted } from "./session.js";

/** Asks for a token when the server wants one. @param {{ onSignedIn: () => Promise<unknown> }} props */
export function TokenForm({ onSignedIn }) {
  const text = useSignal("");
  const signIn = async () => {
    keepToken(text.value.trim().replace(/^.*#token=/, ""));
    try {
      await call("v1/health");
      await onSignedIn();
    } catch (error) {
      forgetToken();
      throw error;
    }
    tokenWanted.value = false;
  };
  return html`<main class="sign-in">
    <div class="card">
      <h1>A token, please</h1>
      ${
        tokenRefused.value
          ? html`<p role="alert">
              <b>The server does not accept this tab's token.</b> It was removed, has expired or is of another server;
              the one in the link that “ullage serve” prints is good until that ends.
            </p>`
          : html`<p>This server answers nobody over the network without a token.</p>`
      }
      <p>“ullage serve” prints a link that carries one; <code>ullage token create</code> makes others.</p>
      <${ActionForm} label="Go on" busyLabel="Asking…" disabled=${text.value.trim() === ""} onSubmit=${signIn}>
        <label class="field">
          <span>Token</span>
          <input
            name="token"
            type="password"
            autocomplete="off"
            autofocus
            value=${text.value}
            onInput=${(/** @type {any} */ event) => (text.value = event.target.value)}
          />
          <small class="faint">It stays in this tab and is forgotten when the tab is closed.</small>
        </label>
      <//>
    </div>
  </main>`;
}
