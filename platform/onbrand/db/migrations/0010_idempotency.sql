-- depends: 0009_audit
-- Idempotency keys of API calls, with the answers of the first call.
set role onbrand_definer;

-- The owner of the idempotency keys of this transaction: brand (empty for calls outside any brand), user, and API key.
-- Two API keys of one user share no idempotency keys.
create function private.my_caller() returns text
language plpgsql stable security definer set search_path = '' as $$
declare c jsonb := private.claims();
begin
  if c ? 'brand_id' then
    return private.my_brand() || ' ' || (c ->> 'sub') || ' ' || coalesce(c ->> 'key_id', '');
  end if;
  if private.is_credential_valid() then return ' ' || (c ->> 'sub') || ' ' || coalesce(c ->> 'key_id', ''); end if;
  return null;
end $$;

-- The same from unverified claims, as an object with one field; see app.brand_isolation_condition.
create function private.claimed_caller_object() returns jsonb
language sql stable
return jsonb_build_object(coalesce(private.claimed_brand_id()
  || ' ' || split_part(current_setting('request.scope', true), '|', 5)
  || ' ' || case split_part(current_setting('request.scope', true), '|', 7) when 'key'
    then split_part(current_setting('request.scope', true), '|', 8) else '' end, ''), true);

reset role;

grant execute on function private.my_caller(), private.claimed_caller_object() to authenticated, onbrand_owner;

set role onbrand_owner;

-- brand_id is null for calls outside any brand, such as the creation of one. So the isolation policies compare
-- `caller`.
create table app.idempotency_keys (
  brand_id text references app.brands,
  user_id uuid not null,
  key text not null check (char_length(key) between 1 and 255),
  route text not null check (char_length(route) <= 200),
  request_sha256 text not null check (request_sha256 ~ '^[0-9a-f]{64}$'),
  status integer,
  body jsonb,
  created_at timestamptz not null default clock_timestamp(),
  key_id text not null default '' check (char_length(key_id) <= 36),
  caller text not null generated always as (coalesce(brand_id, '') || ' ' || user_id::text || ' ' || key_id) stored,
  primary key (caller, key)
);
alter table app.idempotency_keys enable row level security;
alter table app.idempotency_keys force row level security;
create policy brand_isolation_user on app.idempotency_keys as restrictive for all to authenticated
  using ((caller, true) = (select s.caller, s.caller is not null from (select private.my_caller() offset 0) as s (caller))
    and ((select private.claimed_caller_object()))[caller] is not null)
  with check (caller = (select private.my_caller()));
create policy brand_isolation_system on app.idempotency_keys as restrictive for all to brand_system using (false);
create policy function_owner on app.idempotency_keys to onbrand_definer using (true) with check (true);
create trigger brand_immutable before update on app.idempotency_keys
  for each row execute function app.tg_brand_immutable();
call app.disable_column_statistics('app.idempotency_keys');
create policy own_keys on app.idempotency_keys for all to authenticated
  using (true) with check (true);
grant select, delete on app.idempotency_keys to authenticated;
grant insert (brand_id, user_id, key, route, request_sha256, key_id) on app.idempotency_keys to authenticated;
grant update (status, body) on app.idempotency_keys to authenticated;

reset role;
