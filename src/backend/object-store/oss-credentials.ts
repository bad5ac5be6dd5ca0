import type { CredentialLoader } from "../credentials.ts";

/** ALIBABA_CLOUD_ACCESS_KEY_ID and its like, as Alibaba's own tools read them, or OSS_ACCESS_KEY_ID, as ossutil does. */
export function ossEnvironment(env: Readonly<Record<string, string | undefined>>): CredentialLoader {
  const pick = (...names: string[]): string | undefined => names.map((name) => env[name]).find((value) => value);
  return {
    keepMs: 0,
    load: () => {
      const accessKeyId = pick("ALIBABA_CLOUD_ACCESS_KEY_ID", "OSS_ACCESS_KEY_ID");
      const secretAccessKey = pick("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "OSS_ACCESS_KEY_SECRET");
      const sessionToken = pick("ALIBABA_CLOUD_SECURITY_TOKEN", "OSS_SESSION_TOKEN");
      if (accessKeyId === undefined || secretAccessKey === undefined) return Promise.resolve(undefined);
      return Promise.resolve({ accessKeyId, secretAccessKey, ...(sessionToken === undefined ? {} : { sessionToken }) });
    },
  };
}
