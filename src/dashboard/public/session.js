import { signal } from "@preact/signals";

/*
 * The token that proves who is asking. `serve` prints a link whose fragment carries one; it is read once, taken out of
 * the address bar and the history, and kept for this tab only.
 */

const key = "ullage.token";

/** True after the server asked for a token that we don't have or that is no good. */
export const tokenWanted = signal(false);

/** Whether it was a token that this page had, and not that there was none. */
export const tokenRefused = signal(false);

/** @type {string | null} */
let token = null;

/** Takes the token out of the address bar; call it before anything else looks at the fragment. */
export function adoptToken() {
  const match = /^#token=([^&]+)/.exec(location.hash);
  if (match === null) {
    token = sessionStorage.getItem(key);
    return;
  }
  keepToken(decodeURIComponent(match[1] ?? ""));
  history.replaceState(null, "", `${location.pathname}${location.search}#/`);
}

/** @param {string} text */
export function keepToken(text) {
  token = text;
  sessionStorage.setItem(key, text);
}

export function forgetToken() {
  token = null;
  sessionStorage.removeItem(key);
}

/** The server did not accept who we are: whoever looks has to say. */
export function askForToken() {
  if (tokenWanted.value) return;
  tokenRefused.value = token !== null;
  tokenWanted.value = true;
}

/** @returns {Record<string, string>} */
export function authorization() {
  return token === null ? {} : { authorization: `Bearer ${token}` };
}

export function hasToken() {
  return token !== null;
}
