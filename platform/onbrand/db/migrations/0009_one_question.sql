-- depends: 0008_engine
-- A credential and its membership are one question, asked in one query: these functions are what the wall costs. And an
-- API key says what it is used for: the database shows nothing to a key that may not do that, reading included.
set role onbrand_identity;
grant usage on schema identity to onbrand_definer;
grant select (id, user_id, idle, last_seen_at, expires_at, ended_at) on identity.sessions to onbrand_definer;
reset role;

set role onbrand_definer;

-- What a claim says needs nobody's rights. Names in these bodies were looked up when they were made, so that no search_path
-- changes them; and the planner writes them into what asks, so that they cost no call.
create or replace function private.uid() returns uuid
language sql stable
return (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid;

create or replace function private.ctx(k text) returns text
language sql stable
return nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> k;

-- When a key and a session stand.
create function private.key_stands(revoked_at timestamptz, expires_at timestamptz) returns boolean
language sql stable
return revoked_at is null and (expires_at is null or expires_at > statement_timestamp());

create function private.session_stands(ended_at timestamptz, expires_at timestamptz, last_seen_at timestamptz,
  idle interval) returns boolean
language sql stable
return ended_at is null and expires_at > statement_timestamp() and last_seen_at + idle > statement_timestamp();

-- Neither a key nor a token of some scopes only: whoever it is may all that they may.
create function private.is_unlimited() returns boolean
language sql stable
return not coalesce(nullif(current_setting('request.jwt.claims', true), '')::jsonb ?| array['key_id', 'scopes'], true);

-- Asked once for every table of every statement. A key that is not used for one of its scopes reaches nothing; nor does
-- what claims to be a key and a page's session at once, for no credential is.
create or replace function private.my_brands() returns text[]
language plpgsql stable security definer set search_path = '' as $$
declare
  c jsonb := nullif(current_setting('request.jwt.claims', true), '')::jsonb;
begin
  if c ?| array['key_id', 'session_id'] then
    if c ? 'session_id' then
      return array(select bu.brand_id from identity.sessions s join app.brand_users bu on bu.user_id = s.user_id
        where s.id = (c ->> 'session_id')::uuid and s.user_id = (c ->> 'sub')::uuid and not c ? 'key_id'
          and private.session_stands(s.ended_at, s.expires_at, s.last_seen_at, s.idle)
          and (c ->> 'brand_id' is null or bu.brand_id = c ->> 'brand_id'));
    end if;
    return array(select bu.brand_id from app.api_keys k
      join app.brand_users bu on bu.brand_id = k.brand_id and bu.user_id = k.user_id
      where k.id = (c ->> 'key_id')::uuid and k.brand_id = c ->> 'brand_id' and k.user_id = (c ->> 'sub')::uuid
        and private.key_stands(k.revoked_at, k.expires_at) and c ->> 'purpose' = any (k.scopes)
        and (c -> 'scopes' is null or c -> 'scopes' ? (c ->> 'purpose')));
  end if;
  return array(select bu.brand_id from app.brand_users bu
    where bu.user_id = (c ->> 'sub')::uuid and (c ->> 'brand_id' is null or bu.brand_id = c ->> 'brand_id'));
end $$;

create or replace function private.my_admin_brands() returns text[]
language plpgsql stable security definer set search_path = '' as $$
declare
  c jsonb := nullif(current_setting('request.jwt.claims', true), '')::jsonb;
begin
  if c ?| array['key_id', 'session_id', 'scopes'] then
    if c ? 'session_id' and not c ?| array['key_id', 'scopes'] then
      return array(select bu.brand_id from identity.sessions s join app.brand_users bu on bu.user_id = s.user_id
        where s.id = (c ->> 'session_id')::uuid and s.user_id = (c ->> 'sub')::uuid and bu.role = 'admin'
          and private.session_stands(s.ended_at, s.expires_at, s.last_seen_at, s.idle)
          and (c ->> 'brand_id' is null or bu.brand_id = c ->> 'brand_id'));
    end if;
    if not private.may('manage') then return '{}'; end if;
  end if;
  return array(select bu.brand_id from app.brand_users bu
    where bu.user_id = (c ->> 'sub')::uuid and bu.role = 'admin'
      and (c ->> 'brand_id' is null or bu.brand_id = c ->> 'brand_id'));
end $$;

-- May this credential do such a thing at all? A key may what its row says, and its claims may only narrow that.
create or replace function private.may(what text) returns boolean
language plpgsql stable security definer set search_path = '' as $$
declare
  c jsonb := nullif(current_setting('request.jwt.claims', true), '')::jsonb;
begin
  if not c ?| array['key_id', 'session_id', 'scopes'] then return true; end if;  -- the user themselves, by a token
  if c ->> 'scopes' is not null and not c -> 'scopes' ? may.what then return false; end if;
  if c ? 'session_id' then
    return exists (select 1 from identity.sessions s
      where s.id = (c ->> 'session_id')::uuid and s.user_id = (c ->> 'sub')::uuid and not c ? 'key_id'
        and private.session_stands(s.ended_at, s.expires_at, s.last_seen_at, s.idle));
  end if;
  if c ? 'key_id' then
    return exists (select 1 from app.api_keys k
      where k.id = (c ->> 'key_id')::uuid and k.brand_id = c ->> 'brand_id' and k.user_id = (c ->> 'sub')::uuid
        and private.key_stands(k.revoked_at, k.expires_at) and may.what = any (k.scopes));
  end if;
  return c is not null;
end $$;

reset role;
grant execute on function private.is_unlimited() to authenticated, onbrand_owner;

-- One's own keys first: whether a page's session lives is the wall's question, which stands before this.
set role onbrand_owner;
alter policy reader_select on app.api_keys using (coalesce(
  (user_id = (select private.uid()) and ((select private.is_unlimited()) or (select private.may('manage'))))
  or brand_id = any ((select private.my_admin_brands())::text[]), false));
reset role;
